//! Prometheus' text exposition format, version 0.0.4, as node_exporter's
//! textfile collector reads it. *Pure*.

use std::fmt::{Display, Write};

/// What kind of number a family of samples has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricType {
    /// It goes up and down.
    Gauge,
    /// It only goes up, until a restart.
    Counter,
}

/// Adds one family: its two lines of description, and a line for each sample,
/// which is its labels without braces and its value.
pub fn family(
    text: &mut String,
    name: &str,
    kind: MetricType,
    help: &str,
    samples: impl IntoIterator<Item = (impl Display, impl Display)>,
) {
    let help = help.replace('\\', "\\\\").replace('\n', "\\n");
    let kind = match kind {
        MetricType::Gauge => "gauge",
        MetricType::Counter => "counter",
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{{{labels}}} {value}");
    }
}

/// A label's value: backslash, quote and line feed are escaped.
pub fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
