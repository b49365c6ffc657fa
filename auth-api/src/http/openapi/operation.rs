//! Description of one endpoint: an operation object of OpenAPI.

use std::collections::BTreeMap;

use axum::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, StatusCode};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::http::cache_policy::CachePolicy;
use crate::http::error::{ApiError, ErrorResponse};
use crate::http::json_body;

/// Name of the security scheme of access tokens.
pub(super) const SECURITY_SCHEME: &str = "accessToken";
/// Name of the security scheme of OAuth clients.
pub(super) const CLIENT_SECURITY_SCHEME: &str = "client";
const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

/// Schema of error responses with the member `detail`.
const DETAIL_SCHEMA: &str = "Detail";
/// Schema of error responses with the member `message`.
const MESSAGE_SCHEMA: &str = "Message";
/// Schema of the error responses of OAuth.
const OAUTH_ERROR_SCHEMA: &str = "OAuthError";
/// Schema of error responses that list the problems of a request body.
const PROBLEMS_SCHEMA: &str = "Problems";

/// Request body of an endpoint.
pub(crate) trait RequestBody {
    /// Returns its JSON Schema (draft 2020-12).
    fn schema() -> Value;
    fn example() -> Value;
}

/// Description of an endpoint.
pub(crate) struct Operation {
    summary: &'static str,
    description: &'static str,
    security: Vec<Value>,
    parameters: Vec<Value>,
    request_body: Option<Value>,
    responses: BTreeMap<u16, ResponseDescription>,
}

/// Description of all responses with one status.
#[derive(Default)]
struct ResponseDescription {
    description: String,
    /// Media type of the body.
    media_type: MediaType,
    schemas: Vec<SchemaSource>,
    examples: Map<String, Value>,
    /// Headers of the examples, once per example that has the header.
    headers: Vec<HeaderName>,
}

/// Media type of a response's body.
struct MediaType(&'static str);

impl Default for MediaType {
    fn default() -> Self {
        Self(JSON)
    }
}

#[derive(Clone, Copy)]
enum SchemaSource {
    Type(fn(&mut SchemaGenerator) -> Schema),
    Named(&'static str),
}

impl Operation {
    pub(crate) fn new(summary: &'static str, description: &'static str) -> Self {
        Self {
            summary,
            description,
            security: Vec::new(),
            parameters: Vec::new(),
            request_body: None,
            responses: BTreeMap::new(),
        }
    }

    /// Requires an access token.
    pub(crate) fn bearer(mut self) -> Self {
        self.security.push(json!({SECURITY_SCHEME: []}));
        self
    }

    /// Accepts an access token, without requiring one.
    pub(crate) fn optional_bearer(mut self) -> Self {
        self.security.push(json!({}));
        self.bearer()
    }

    /// Requires the authentication of an OAuth client: by Basic, or by the request body.
    pub(crate) fn client(mut self) -> Self {
        self.security.push(json!({CLIENT_SECURITY_SCHEME: []}));
        self.security.push(json!({}));
        self
    }

    /// Requires a JSON body, and adds the errors that any such body can cause.
    pub(crate) fn request_body<B: RequestBody>(self) -> Self {
        self.body_of_type::<B>(JSON)
            .errors(json_body::possible_errors())
    }

    /// Requires a form as the body.
    pub(crate) fn form_body<B: RequestBody>(self) -> Self {
        self.body_of_type::<B>(FORM)
    }

    fn body_of_type<B: RequestBody>(mut self, media_type: &str) -> Self {
        let content = json!({"schema": B::schema(), "example": B::example()});
        self.request_body = Some(json!({"required": true, "content": {media_type: content}}));
        self
    }

    pub(crate) fn path_parameter(mut self, name: &str, description: &str, example: &str) -> Self {
        self.parameters.push(json!({
            "name": name,
            "in": "path",
            "required": true,
            "description": description,
            "schema": {"type": "string", "minLength": 1},
            "example": example,
        }));
        self
    }

    /// Adds the successful response.
    pub(crate) fn response<T: Serialize + JsonSchema>(
        mut self,
        status: StatusCode,
        description: &str,
        example: &T,
    ) -> Self {
        let response = self.responses.entry(status.as_u16()).or_default();
        description.clone_into(&mut response.description);
        response
            .schemas
            .push(SchemaSource::Type(SchemaGenerator::subschema_for::<T>));
        let example = serde_json::to_value(example).expect("a response serialises to JSON");
        response
            .examples
            .insert("good".to_owned(), json!({"value": example}));
        self
    }

    /// Like [`Self::response`], for a body of another type than `application/json`.
    pub(crate) fn response_of_type<T: Serialize + JsonSchema>(
        self,
        status: StatusCode,
        media_type: &'static str,
        description: &str,
        example: &T,
    ) -> Self {
        let mut operation = self.response(status, description, example);
        let response = operation.responses.entry(status.as_u16()).or_default();
        response.media_type = MediaType(media_type);
        operation
    }

    /// Adds a successful response without a body, which always has the `headers`.
    pub(crate) fn empty_response(
        mut self,
        status: StatusCode,
        description: &str,
        headers: &[HeaderName],
    ) -> Self {
        let response = self.responses.entry(status.as_u16()).or_default();
        description.clone_into(&mut response.description);
        response.headers.extend_from_slice(headers);
        self
    }

    /// Adds error responses.
    pub(crate) fn errors(mut self, errors: impl IntoIterator<Item = ApiError>) -> Self {
        for error in errors.into_iter().map(ErrorResponse::from) {
            let response = self.responses.entry(error.status.as_u16()).or_default();
            response.add_error(&error);
        }
        self
    }

    pub(super) fn into_json(
        self,
        method: &str,
        path: &str,
        schemas: &mut SchemaGenerator,
    ) -> Value {
        let cache_policy = CachePolicy::of_path(path);
        let responses: Map<_, _> = self
            .responses
            .into_iter()
            .map(|(status, response)| {
                (
                    status.to_string(),
                    response.into_json(cache_policy, schemas),
                )
            })
            .collect();
        let mut operation = json!({
            "operationId": operation_id(method, path),
            "summary": self.summary,
            "description": self.description,
            "parameters": self.parameters,
            "security": self.security,
            "responses": responses,
        });
        if let Some(body) = self.request_body {
            operation["requestBody"] = body;
        }
        operation
    }
}

/// Converts `POST /api/logout-all` to `post_logout_all`.
fn operation_id(method: &str, path: &str) -> String {
    let words = path.trim_start_matches("/api").replace(['/', '-'], "_");
    method.to_ascii_lowercase() + &words.replace(['{', '}', '.'], "")
}

impl ResponseDescription {
    fn add_error(&mut self, error: &ErrorResponse) {
        let member = |name| error.body.get(name).and_then(Value::as_str);
        let texts = ["detail", "message", "error_description"].map(member);
        let (schema, text) = match texts {
            [Some(detail), ..] => (DETAIL_SCHEMA, detail),
            [_, Some(message), _] => (MESSAGE_SCHEMA, message),
            [_, _, Some(description)] => (OAUTH_ERROR_SCHEMA, description),
            [None, None, None] => (PROBLEMS_SCHEMA, "Invalid request body"),
        };
        let is_same =
            |known: &SchemaSource| matches!(known, SchemaSource::Named(name) if *name == schema);
        if !self.schemas.iter().any(is_same) {
            self.schemas.push(SchemaSource::Named(schema));
        }
        if !self.description.contains(text) {
            if !self.description.is_empty() {
                self.description.push_str(" · ");
            }
            self.description.push_str(text);
        }
        let key = text.to_lowercase().replace(' ', "_");
        self.examples.insert(key, json!({"value": error.body}));
        self.headers
            .extend(error.header.as_ref().map(|(name, _)| name.clone()));
    }

    fn into_json(self, cache_policy: CachePolicy, schemas: &mut SchemaGenerator) -> Value {
        // A response without a body has none.
        let example_count = self.examples.len().max(1);
        let mut alternatives: Vec<_> = self
            .schemas
            .iter()
            .map(|schema| match schema {
                SchemaSource::Type(generate) => generate(schemas).to_value(),
                SchemaSource::Named(name) => {
                    json!({"$ref": format!("#/components/schemas/{name}")})
                }
            })
            .collect();
        let schema = match alternatives.len() {
            1 => alternatives.remove(0),
            _ => json!({"oneOf": alternatives}),
        };
        let mut headers = json!({
            X_CONTENT_TYPE_OPTIONS.as_str(): {"required": true, "schema": {"const": "nosniff"}},
        });
        if cache_policy == CachePolicy::NoStore {
            headers[CACHE_CONTROL.as_str()] =
                json!({"required": true, "schema": {"const": "no-store"}});
        }
        for name in &self.headers {
            let count = self.headers.iter().filter(|other| *other == name).count();
            let is_required = count == example_count;
            headers[name.as_str()] =
                json!({"required": is_required, "schema": header_schema(name)});
        }
        let mut response = json!({"description": self.description, "headers": headers});
        if !self.schemas.is_empty() {
            let content = json!({"schema": schema, "examples": self.examples});
            response["content"] = json!({self.media_type.0: content});
        }
        response
    }
}

fn header_schema(name: &HeaderName) -> Value {
    match name.as_str() {
        "retry-after" => json!({"type": "integer", "minimum": 1, "description": "Seconds."}),
        _ => json!({"type": "string"}),
    }
}

/// Returns the schemas of error responses.
pub(super) fn error_schemas() -> [(String, Value); 4] {
    let object = |member: &str, schema: Value| json!({"type": "object", "required": [member], "properties": {member: schema}});
    [
        (
            DETAIL_SCHEMA.to_owned(),
            object("detail", json!({"type": "string"})),
        ),
        (
            MESSAGE_SCHEMA.to_owned(),
            object("message", json!({"type": "string"})),
        ),
        (
            OAUTH_ERROR_SCHEMA.to_owned(),
            json!({
                "type": "object",
                "required": ["error", "error_description"],
                "properties": {
                    "error": {"enum": ["invalid_request", "invalid_client", "temporarily_unavailable"]},
                    "error_description": {"type": "string"},
                },
            }),
        ),
        (
            PROBLEMS_SCHEMA.to_owned(),
            object(
                "detail",
                json!({
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["type", "loc", "msg"],
                        "properties": {
                            "type": {"type": "string"},
                            "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                            "msg": {"type": "string"},
                        },
                    },
                }),
            ),
        ),
    ]
}
