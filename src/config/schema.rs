//! The JSON Schema (draft 2020-12) of the file, made from the table of settings, for editors that complete
//! and underline. It is as strict as a schema can be; the loader is stricter.

use serde_json::{Map, Value, json};

use super::settings::{FILE, Section, Setting};
use super::value::Kind;

const DURATION: &str = "^([0-9]+(ms|s|m|h|d))+$";
const SIZE: &str = "^[0-9]+(B|KiB|MiB|GiB)$";
const RATE: &str = "^[0-9]+/(s|m|h)$";
const REFERENCE: &str = "^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)$";
const NAME: &str = "^[a-z0-9][a-z0-9_-]{0,63}$";

/// The schema, as pretty-printed JSON.
#[must_use]
pub fn schema() -> String {
    let mut root = object(&FILE);
    root.insert("$schema".to_owned(), "https://json-schema.org/draft/2020-12/schema".into());
    root.insert("title".to_owned(), "chaski configuration".into());
    format!("{:#}\n", Value::Object(root))
}

fn object(section: &Section) -> Map<String, Value> {
    let mut schema = Map::new();
    schema.insert("type".to_owned(), "object".into());
    if !section.doc.is_empty() {
        schema.insert("description".to_owned(), section.doc.into());
    }
    if let Some(each) = section.each {
        schema.insert("propertyNames".to_owned(), json!({ "pattern": NAME }));
        schema.insert("additionalProperties".to_owned(), object(each).into());
        return schema;
    }
    let mut properties = Map::new();
    for setting in section.settings {
        properties.insert(setting.key.to_owned(), property(setting));
    }
    for inner in section.sections {
        properties.insert(inner.name.to_owned(), object(inner).into());
    }
    schema.insert("properties".to_owned(), properties.into());
    schema.insert("additionalProperties".to_owned(), false.into());
    // A preset can stand in for what is required elsewhere.
    let required: Vec<&str> =
        section.settings.iter().filter(|setting| setting.required).map(|setting| setting.key).collect();
    if ALL_OR_NONE.contains(&section.name) {
        let each = section.settings.iter().map(|setting| (setting.key.to_owned(), required.clone().into()));
        schema.insert("dependentRequired".to_owned(), each.collect::<Map<_, Value>>().into());
    } else if !required.is_empty() && !PRESET_FILLS.contains(&section.name) {
        schema.insert("required".to_owned(), required.into());
    }
    schema
}

/// The sections of which a preset may have given the required keys.
const PRESET_FILLS: &[&str] = &["signature", "timestamp", "event"];

/// The sections that may stand there empty: what is required is so as soon as anything is written.
const ALL_OR_NONE: &[&str] = &["tls"];

fn property(setting: &Setting) -> Value {
    let mut schema = kind(setting.kind);
    if let Value::Object(schema) = &mut schema {
        schema.insert("description".to_owned(), setting.doc.into());
        if let Some(default) = setting.default.and_then(to_json) {
            schema.insert("default".to_owned(), default);
        }
        if let Some(example) = setting.example.and_then(to_json) {
            schema.insert("examples".to_owned(), json!([example]));
        }
    }
    schema
}

fn kind(kind: Kind) -> Value {
    let texts = |pattern: &str| json!({ "type": "array", "items": { "type": "string", "pattern": pattern } });
    let reference = json!({ "type": "string", "pattern": REFERENCE });
    match kind {
        Kind::Text | Kind::Path | Kind::Address => json!({ "type": "string" }),
        Kind::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::TextTable => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Kind::Settings => {
            json!({ "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] } })
        }
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Number { min, max } => json!({ "type": "number", "minimum": min, "maximum": max }),
        Kind::Duration { .. } => json!({ "type": "string", "pattern": DURATION }),
        Kind::Durations => texts(DURATION),
        Kind::Size { .. } => json!({ "type": "string", "pattern": SIZE }),
        Kind::Choice(choices) => json!({ "enum": choices }),
        Kind::Rate => json!({ "type": "string", "pattern": RATE }),
        Kind::Secret => reference,
        Kind::Secrets => json!({ "anyOf": [reference, texts(REFERENCE)] }),
        Kind::SecretSet => {
            let moment = json!({ "type": "string", "format": "date-time" });
            let dated = json!({ "anyOf": [reference, {
                "type": "object",
                "properties": { "secret": reference, "not_before": moment, "not_after": moment },
                "required": ["secret"],
                "additionalProperties": false,
            }] });
            json!({ "anyOf": [
                { "type": "array", "items": dated, "minItems": 1 },
                { "type": "object", "additionalProperties": dated, "minProperties": 1 },
            ] })
        }
    }
}

/// A TOML literal of the table of settings as JSON.
pub(super) fn to_json(literal: &str) -> Option<Value> {
    let table: toml::Table = format!("value = {literal}").parse().ok()?;
    serde_json::to_value(table.get("value")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(section: &'static Section, schema: &Value) {
        if let Some(each) = section.each {
            return covers(each, &schema["additionalProperties"]);
        }
        assert_eq!(schema["additionalProperties"], false, "{}", section.name);
        for setting in section.settings {
            let property = &schema["properties"][setting.key];
            assert!(property["description"].is_string(), "{}", setting.key);
            assert_eq!(property.get("default").is_some(), setting.default.is_some(), "{}", setting.key);
        }
        for inner in section.sections {
            covers(inner, &schema["properties"][inner.name]);
        }
    }

    #[test]
    fn the_schema_is_json_and_covers_every_setting() {
        let schema: Value = serde_json::from_str(&schema()).unwrap();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        covers(&FILE, &schema);
        // The sample of the public surface has an empty one.
        let tls = &schema["properties"]["ingest"]["properties"]["tls"];
        assert_eq!(tls.get("required"), None);
        assert_eq!(tls["dependentRequired"]["client_ca"], json!(["cert", "key"]));
    }
}
