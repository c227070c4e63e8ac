//! The JSON Schema of the protocol, which `docs/control.schema.json` holds.

use schemars::{Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

use crate::{
    Failure, Method,
    error::code,
    event::WatchEvent,
    for_each_method,
    line::{Greeting, MAX_LINE, PROTOCOL},
};

/// The schema: lines of the daemon by its own rules, calls and their results by the method.
#[must_use]
pub fn document() -> Value {
    // Of two kinds of schema, what the harness sends is the stricter one.
    let mut params = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let mut calls = Vec::new();
    let mut results = serde_json::Map::new();
    macro_rules! describe {
        ($($method:ty,)*) => {$(
            let schema = params.subschema_for::<$method>();
            calls.push(call(<$method as Method>::NAME, &schema));
            let result = params.subschema_for::<<$method as Method>::Result>();
            results.insert(<$method as Method>::NAME.to_owned(), result.to_value());
        )*};
    }
    for_each_method!(describe);
    let greeting = params.subschema_for::<Greeting>();
    let event = params.subschema_for::<WatchEvent>();
    let failure = params.subschema_for::<Failure>();
    let codes: Vec<Value> = code::ALL
        .iter()
        .map(|(code, when)| json!({ "const": code, "description": when }))
        .collect();
    let id = json!({ "description": "That of the call, any JSON value." });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The control protocol of memtun",
        "description": format!(
            "Version {PROTOCOL}. Each line is a JSON object. A harness sends lines of at most {MAX_LINE} bytes, as $defs/call describes \
             them. The daemon sends lines as described here: first a greeting, then an answer to each call and, for a watch, events. \
             A result is as $defs/results has it for the call's method. What is not described may be added later; ignore it."
        ),
        "anyOf": [
            greeting,
            { "type": "object", "properties": { "id": id, "result": true }, "required": ["id", "result"] },
            { "type": "object", "properties": { "id": id, "error": failure }, "required": ["id", "error"] },
            { "type": "object", "properties": { "event": event }, "required": ["event"] },
        ],
        "$defs": definitions(&mut params, calls, results, &codes),
    })
}

fn call(method: &str, params: &Schema) -> Value {
    json!({
        "type": "object",
        "properties": {
            "id": { "description": "Comes back with the answer; any JSON value." },
            "method": { "const": method },
            "params": params,
        },
        "required": ["method"],
        "additionalProperties": false,
    })
}

fn definitions(
    generator: &mut SchemaGenerator,
    calls: Vec<Value>,
    results: serde_json::Map<String, Value>,
    codes: &[Value],
) -> Value {
    let mut definitions = generator.take_definitions(true);
    definitions.insert("call".to_owned(), json!({ "oneOf": calls }));
    definitions.insert("results".to_owned(), json!({ "type": "object", "properties": results }));
    definitions.insert("code".to_owned(), json!({ "anyOf": codes }));
    Value::Object(definitions)
}
