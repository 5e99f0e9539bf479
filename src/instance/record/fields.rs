//! The fields of a record in JSON, in all spellings that readers know. *Pure*.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{Unreadable, field_error};
use crate::text::printable::clipped;

/// A field that a reader knows.
#[derive(Clone, Copy)]
pub(super) enum Field {
    ServiceName,
    InstanceId,
    Version,
    Status,
    LastHeartbeat,
    StickyActiveGroup,
    Metadata,
}

impl Field {
    /// The field of that name, and which of its two spellings it is: camelCase
    /// is the first.
    fn read(name: &str) -> Option<(Field, usize)> {
        Some(match name {
            "serviceName" => (Field::ServiceName, 0),
            "service_name" => (Field::ServiceName, 1),
            "instanceId" => (Field::InstanceId, 0),
            "instance_id" => (Field::InstanceId, 1),
            "version" => (Field::Version, 0),
            "status" => (Field::Status, 0),
            "lastHeartbeat" => (Field::LastHeartbeat, 0),
            "last_heartbeat" => (Field::LastHeartbeat, 1),
            "stickyActiveGroup" => (Field::StickyActiveGroup, 0),
            "sticky_active_group" => (Field::StickyActiveGroup, 1),
            "metadata" => (Field::Metadata, 0),
            _ => return None,
        })
    }

    /// The spelling that is written.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Field::ServiceName => "serviceName",
            Field::InstanceId => "instanceId",
            Field::Version => "version",
            Field::Status => "status",
            Field::LastHeartbeat => "lastHeartbeat",
            Field::StickyActiveGroup => "stickyActiveGroup",
            Field::Metadata => "metadata",
        }
    }
}

/// The values of the known fields in both spellings, nothing where there is
/// none or null. Not a derived struct: that refuses a field that is given twice or in
/// both spellings. Not a `Value` either: unknown fields would be kept, whatever
/// their size.
#[derive(Default)]
pub(super) struct Fields<'de>([[Option<Given<'de>>; 2]; 7]);

/// The value of a field that is not null. Text is what almost all are, and it
/// stays where it stands in the message unless something in it is escaped.
pub(super) enum Given<'de> {
    Text(Cow<'de, str>),
    Other(Value),
}

impl Given<'_> {
    pub(super) fn into_value(self) -> Value {
        match self {
            Given::Text(text) => Value::String(text.into()),
            Given::Other(value) => value,
        }
    }
}

impl<'de> Fields<'de> {
    pub(super) fn read(json: &'de [u8], metadata: Metadata) -> Result<Fields<'de>, Unreadable> {
        let visitor = FieldsVisitor(metadata);
        // Whether it is UTF-8 is looked at once, and not text by text.
        let fields = match std::str::from_utf8(json) {
            Ok(json) => visitor.read(serde_json::Deserializer::from_str(json)),
            Err(_) => visitor.read(serde_json::Deserializer::from_slice(json)),
        };
        fields.map_err(|error| match error.classify() {
            // Keys and values take any JSON, so only the outermost type can
            // be the wrong one.
            serde_json::error::Category::Data => Unreadable::NotAnObject,
            _ => Unreadable::NotJson(clipped(&error.to_string(), 120)),
        })
    }

    pub(super) fn take(&mut self, field: Field) -> Option<Given<'de>> {
        let [camel, snake] = &mut self.0[field as usize];
        camel.take().or_else(|| snake.take())
    }

    pub(super) fn text(
        &mut self,
        field: Field,
        wrong: &'static str,
    ) -> Result<Option<Cow<'de, str>>, Unreadable> {
        match self.take(field) {
            None => Ok(None),
            Some(Given::Text(text)) => Ok(Some(text)),
            Some(Given::Other(other)) => Err(field_error(field, &other, wrong)),
        }
    }

    pub(super) fn name(&mut self, field: Field) -> Result<Option<String>, Unreadable> {
        let name = self.text(field, "not text")?;
        Ok(name.filter(|name| !name.is_empty()).map(Cow::into_owned))
    }
}

/// What becomes of the metadata, which cost as much as all other fields.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Metadata {
    Kept,
    /// What stands there is read and forgotten: an object is empty then.
    Forgotten,
}

struct FieldsVisitor(Metadata);

impl FieldsVisitor {
    fn read<'de, R: serde_json::de::Read<'de>>(
        self,
        mut json: serde_json::Deserializer<R>,
    ) -> serde_json::Result<Fields<'de>> {
        let fields = json.deserialize_map(self)?;
        json.end().map(|()| fields)
    }
}

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        while let Some(Slot(slot)) = map.next_key()? {
            match slot {
                Some((Field::Metadata, spelling)) if self.0 == Metadata::Forgotten => {
                    fields.0[Field::Metadata as usize][spelling] =
                        map.next_value::<Seen>()?.given();
                }
                Some((field, spelling)) => fields.0[field as usize][spelling] = map.next_value()?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

impl<'de> Deserialize<'de> for Given<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Given<'de>, D::Error> {
        struct GivenVisitor;
        impl<'de> Visitor<'de> for GivenVisitor {
            type Value = Given<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Given<'de>, E> {
                Ok(Given::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Given<'de>, E> {
                Ok(Given::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Given<'de>, E> {
                Ok(Given::Other(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Given<'de>, E> {
                Ok(Given::Other(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Given<'de>, E> {
                Ok(Given::Other(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Given<'de>, E> {
                Ok(Given::Other(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Given<'de>, A::Error> {
                Value::deserialize(SeqAccessDeserializer::new(seq)).map(Given::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Given<'de>, A::Error> {
                Value::deserialize(MapAccessDeserializer::new(map)).map(Given::Other)
            }
        }
        deserializer.deserialize_any(GivenVisitor)
    }
}

/// Which field the name of a field is of, and in which spelling.
struct Slot(Option<(Field, usize)>);

impl<'de> Deserialize<'de> for Slot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Slot, D::Error> {
        struct SlotVisitor;
        impl Visitor<'_> for SlotVisitor {
            type Value = Slot;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a field")
            }

            fn visit_str<E>(self, name: &str) -> Result<Slot, E> {
                Ok(Slot(Field::read(name)))
            }
        }
        deserializer.deserialize_str(SlotVisitor)
    }
}

/// Any JSON, read and forgotten. What a `Value` does not take, this does not take
/// either: too many levels, half a surrogate pair.
enum Seen {
    Null,
    Object,
    Other,
}

impl Seen {
    /// What is left of it.
    fn given(self) -> Option<Given<'static>> {
        match self {
            Seen::Null => None,
            Seen::Object => Some(Given::Other(Map::new().into())),
            Seen::Other => Some(Given::Other(Value::Bool(true))),
        }
    }
}

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Seen, D::Error> {
        struct SeenVisitor;
        impl<'de> Visitor<'de> for SeenVisitor {
            type Value = Seen;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }

            fn visit_unit<E>(self) -> Result<Seen, E> {
                Ok(Seen::Null)
            }

            fn visit_str<E>(self, _: &str) -> Result<Seen, E> {
                Ok(Seen::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Seen, E> {
                Ok(Seen::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Seen, E> {
                Ok(Seen::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Seen, E> {
                Ok(Seen::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Seen, E> {
                Ok(Seen::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Seen, A::Error> {
                while seq.next_element::<Seen>()?.is_some() {}
                Ok(Seen::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Seen, A::Error> {
                while map.next_entry::<Seen, Seen>()?.is_some() {}
                Ok(Seen::Object)
            }
        }
        deserializer.deserialize_any(SeenVisitor)
    }
}
