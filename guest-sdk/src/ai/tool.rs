//! What a model can call.

use std::pin::Pin;
use std::rc::Rc;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Something that a model can have done: an async function with one argument, whose type says what the model is to fill in.
///
/// ```
/// use bureau_sdk::{ai, prelude::*};
/// use schemars::JsonSchema;
/// use serde::Deserialize;
///
/// #[derive(Deserialize, JsonSchema)]
/// struct Weather {
///     /// The city's name in English.
///     city: String,
/// }
///
/// let tool = ai::tool("weather", "The weather in a city now", async |ask: Weather| {
///     Ok(format!("It rains in {}.", ask.city))
/// });
/// ```
pub struct Tool<'a> {
    pub(super) name: String,
    description: String,
    parameters: Value,
    call: Box<Call<'a>>,
}

type Call<'a> = dyn Fn(Value) -> Calling<'a> + 'a;
pub(super) type Calling<'a> = Pin<Box<dyn Future<Output = Result<Value>> + 'a>>;

/// A tool of this name. The description tells the model what it is for; comments on the fields of its input are told as well.
///
/// An [`Error::BadRequest`] that it returns is told to the model and the client, so that the model can do better. Of any other error they
/// learn only that the tool failed, and the message goes to the host's log; [`Error::Cancelled`] ends the answer.
pub fn tool<'a, I, O>(
    name: &str,
    description: &str,
    call: impl AsyncFn(I) -> Result<O> + 'a,
) -> Tool<'a>
where
    I: JsonSchema + DeserializeOwned + 'a,
    O: Serialize,
{
    let call = Rc::new(call);
    let call = move |input| -> Calling<'a> {
        let call = call.clone();
        Box::pin(async move {
            let fault = |fault| Error::BadRequest(format!("the input does not fit: {fault}"));
            let input = serde_json::from_value(input).map_err(fault)?;
            Ok(serde_json::to_value(call(input).await?)?)
        })
    };
    Tool {
        name: name.into(),
        description: description.into(),
        parameters: schema::<I>(),
        call: Box::new(call),
    }
}

impl<'a> Tool<'a> {
    /// The tool as the provider is told of it.
    pub(super) fn told(&self) -> Value {
        let Self { name, description, parameters, .. } = self;
        json!({
            "type": "function",
            "function": { "name": name, "description": description, "parameters": parameters },
        })
    }

    pub(super) fn call(&self, input: Value) -> Calling<'a> {
        (self.call)(input)
    }
}

/// The schema of a type, all of it in one document.
fn schema<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.meta_schema = None;
    settings.inline_subschemas = true;
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// The schema of a type as providers want it of an answer that is to keep to it: nothing may be added or left out.
pub(super) fn strict_schema<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.meta_schema = None;
    settings.transforms.push(Box::new(RecursiveTransform(|schema: &mut schemars::Schema| {
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
        let names: Vec<_> = properties.keys().cloned().collect();
        schema.insert("required".into(), names.into());
        schema.insert("additionalProperties".into(), false.into());
    })));
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, JsonSchema)]
    #[expect(dead_code, reason = "only its schema is of interest")]
    struct Ask {
        /// The city.
        city: String,
        days: Option<u8>,
        within: Vec<Within>,
    }

    #[derive(serde::Deserialize, JsonSchema)]
    #[expect(dead_code, reason = "only its schema is of interest")]
    struct Within {
        #[serde(default)]
        hours: bool,
    }

    #[test]
    fn a_tool_is_told_with_its_schema() {
        let told = tool("weather", "Now", async |_: Ask| Ok(())).told();
        let parameters = &told["function"]["parameters"];
        assert_eq!(told["function"]["name"], "weather");
        assert_eq!(parameters["properties"]["city"]["description"], "The city.");
        assert_eq!(parameters["required"], json!(["city", "within"]));
        assert_eq!(parameters["properties"]["within"]["items"]["type"], "object");
        assert!(parameters.get("$schema").is_none(), "{parameters}");
    }

    #[test]
    fn a_strict_schema_leaves_nothing_open() {
        let schema = strict_schema::<Ask>();
        assert_eq!(schema["required"], json!(["city", "days", "within"]));
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["$defs"]["Within"]["required"], json!(["hours"]));
        assert_eq!(schema["$defs"]["Within"]["additionalProperties"], false);
    }
}
