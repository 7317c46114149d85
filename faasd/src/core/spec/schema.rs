//! The file's syntax, where it is not that of the API: shorter keys, quantities with units. As a JSON schema for editors,
//! and for declarations that are put together from several places.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use toml::Table;

use super::{FILE_NAME, FunctionSpec};

/// Where the schema is for whoever has no checkout: what templates name. It does not carry a version: keys are added and
/// not taken away, and a function's directory outlives the `faas` that made it.
pub const SCHEMA_URL: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/raw/main/docs/faas.schema.json");

/// What a key's value is written as.
#[derive(Clone, Copy)]
enum Kind {
    Number,
    Bytes,
    Duration,
}

/// Keys that the file may write shorter than the API: table, key, short key.
const ALIASES: [(&str, &str, &str, Kind); 8] = [
    ("limits", "memory_bytes", "memory", Kind::Bytes),
    ("limits", "cpu_cores", "cpu", Kind::Number),
    ("limits", "pids_max", "pids", Kind::Number),
    ("limits", "tmp_bytes", "tmp", Kind::Bytes),
    ("limits", "files_max", "files", Kind::Number),
    ("scale", "idle_ms", "idle", Kind::Duration),
    ("deadlines", "start_ms", "start", Kind::Duration),
    ("deadlines", "drain_ms", "drain", Kind::Duration),
];

/// Keys that go with certain contracts alone.
const MISPLACED: [(&str, &[&str]); 4] = [
    ("handler", &["command", "forward", "listen_port", "ipv4", "stop_signal"]),
    ("fd", &["handler", "listen_port", "ipv4", "stop_signal"]),
    ("port", &["handler", "forward"]),
    ("listen-fds", &["handler", "forward", "listen_port", "ipv4"]),
];

/// Lays one declaration over another: what `over` says is so, and tables are gone through key by key. The short and the
/// long form of a key are one key.
pub fn merge(base: &mut Table, over: Table) {
    merge_table("", base, over);
}

fn merge_table(table: &str, base: &mut Table, over: Table) {
    for (key, value) in over {
        for (_, long, short, _) in ALIASES.iter().filter(|(of, ..)| *of == table) {
            if key == *short {
                base.remove(*long);
            } else if key == *long {
                base.remove(*short);
            }
        }
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge_table(&key, base, over),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

/// The JSON schema of the function file, of the draft that editors of TOML know.
#[must_use]
pub fn file_schema() -> Value {
    let generator = SchemaSettings::draft07().into_generator();
    let mut schema = generator.into_root_schema_for::<FunctionSpec>().to_value();
    schema["$id"] = SCHEMA_URL.into();
    schema["title"] = FILE_NAME.into();
    schema["description"] = "A function of faasd: docs/CONFIGURATION.md".into();
    for table in ["limits", "scale", "deadlines"] {
        let name = table[..1].to_uppercase() + &table[1..];
        if let Some(definition) = schema["definitions"].get_mut(&name) {
            shorten(table, definition);
        }
        // It repeats the API's form of what the table says key by key.
        if let Some(property) = schema["properties"][table].as_object_mut() {
            property.remove("default");
        }
    }
    without_null(&mut schema);
    schema["allOf"] = contracts();
    schema["dependencies"] = json!({ "writable": ["image"] });
    schema.sort_all_objects();
    schema
}

/// Adds the short keys of a table, which are what people write.
fn shorten(table: &str, definition: &mut Value) {
    let mut exclusive = Vec::new();
    for (_, long, short, kind) in ALIASES.iter().filter(|(of, ..)| *of == table) {
        let mut number = definition["properties"][*long].take();
        let mut entry = Map::new();
        for key in ["description", "default"] {
            if let Some(value) = number.as_object_mut().and_then(|number| number.remove(key)) {
                entry.insert(key.to_owned(), value);
            }
        }
        if let Value::Object(number) = &mut number {
            number.remove("format");
        }
        let text = match kind {
            Kind::Number => None,
            Kind::Bytes => Some(r"^\s*[0-9]+\s*(B|KiB|MiB|GiB)$"),
            Kind::Duration => Some(r"^\s*[0-9]+\s*(ms|s|m|h)$"),
        };
        match text {
            None => entry.extend(number.as_object().cloned().unwrap_or_default()),
            Some(pattern) => {
                let forms = json!([{ "type": "string", "pattern": pattern }, number]);
                entry.insert("anyOf".to_owned(), forms);
            }
        }
        let mut plain = entry.clone();
        plain.insert("description".to_owned(), format!("The same as `{short}`").into());
        plain.remove("default");
        definition["properties"][*long] = Value::Object(plain);
        if let Some(default) = entry.get("default").and_then(Value::as_u64)
            && let Some(text) = written(default, *kind)
        {
            entry.insert("default".to_owned(), text.into());
        }
        definition["properties"][*short] = Value::Object(entry);
        exclusive.push(json!({ "not": { "required": [long, short] } }));
    }
    if !exclusive.is_empty() {
        definition["allOf"] = exclusive.into();
    }
}

/// A quantity as people write it, in the largest unit that it is a whole number of.
fn written(value: u64, kind: Kind) -> Option<String> {
    let units: &[(&str, u64)] = match kind {
        Kind::Number => return None,
        Kind::Bytes => &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)],
        Kind::Duration => &[("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)],
    };
    let (unit, factor) =
        units.iter().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor))?;
    Some(format!("{}{unit}", value / factor))
}

/// TOML has no null: a key is there or is not.
fn without_null(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [one] = types.as_slice() {
                    let one = one.clone();
                    object.insert("type".to_owned(), one);
                }
            }
            if let Some(Value::Array(forms)) = object.get_mut("anyOf") {
                forms.retain(|form| form["type"] != "null");
            }
            object.values_mut().for_each(without_null);
        }
        Value::Array(values) => values.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// What goes with which contract. Without one, `command` or `image` mean a server, and else it is a handler.
fn contracts() -> Value {
    let is = |contract: &str| json!({ "required": ["contract"], "properties": { "contract": { "const": contract } } });
    let without = |keys: &[&str]| -> Value {
        keys.iter().map(|key| ((*key).to_owned(), Value::Bool(false))).collect::<Map<_, _>>().into()
    };
    let has = |key: &str| json!({ "required": [key] });
    let mut rules: Vec<Value> = MISPLACED
        .iter()
        .map(|(contract, keys)| {
            let mut then = json!({ "properties": without(keys) });
            if *contract != "handler" {
                then["anyOf"] = json!([has("command"), has("image")]);
            }
            json!({ "if": is(contract), "then": then })
        })
        .collect();
    let unsaid = json!({ "not": { "anyOf": [has("contract"), has("command"), has("image")] } });
    rules.push(json!({ "if": unsaid, "then": { "properties": without(MISPLACED[0].1) } }));
    rules.into()
}
