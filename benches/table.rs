//! One table for all benches: ours, the peers and the floor side by side, and
//! how ours stands to each of them.

/// Whose figures a row holds, in this order.
pub const COLUMNS: [&str; 4] = ["ours", "nats", "async-nats", "floor"];

/// Prints the head of a table whose rows are named by `what`.
pub fn head(what: &str, width: usize) {
    let [ours, others @ ..] = COLUMNS;
    let names: String = others.iter().map(|name| format!(" {name:>11}")).collect();
    let ratios: String =
        others.iter().map(|name| format!(" {:>11}", format!("/ {name}"))).collect();
    println!("{what:width$} {ours:>11}{names}   ours{ratios}");
}

/// Prints a row. What is not known is a dash, and so is the ratio to it.
pub fn row(what: &str, width: usize, digits: usize, figures: [Option<f64>; 4]) {
    let dash = |text: Option<String>| format!(" {:>11}", text.unwrap_or_else(|| "-".to_owned()));
    let columns: String =
        figures.iter().map(|figure| dash(figure.map(|f| format!("{f:.digits$}")))).collect();
    let [ours, others @ ..] = figures;
    let ratio = |other: Option<f64>| Some(ours? / other.filter(|&other| other > 0.0)?);
    let ratios: String =
        others.iter().map(|&other| dash(ratio(other).map(|r| format!("{r:.2}")))).collect();
    println!("{what:width$}{columns}       {ratios}");
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
