//! The OpenAPI 3.1 document, made of what the endpoints say of themselves: what is answered by its
//! type and an example of it, what is refused by the error itself, as a client gets it.

use std::collections::BTreeMap;

use axum::Router;
use axum::handler::Handler;
use axum::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, StatusCode};
use axum::routing::MethodFilter;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::error::{Error, Refusal, only};
use crate::visit::Privacy;

const ABOUT: &str = "Register, log in and out, and keep sessions. Clients reach this through the gateway, which \
answers some requests itself, always with `{\"error\": \"…\"}`: 400 for what has two readings, 429 past a quota \
(with `RateLimit-Policy`, `RateLimit` and `Retry-After`), 502, 503 and 504 while no replica answers.";

/// The version of what clients rely on. That of the program is nobody's business.
const VERSION: &str = "1";

/// Endpoints, and what the document says of each.
pub(crate) struct Api {
    router: Router<App>,
    schemas: SchemaGenerator,
    paths: BTreeMap<&'static str, Map<String, Value>>,
}

/// What a request's body has to be.
pub(crate) trait Body {
    /// As JSON Schema (draft 2020-12).
    fn schema() -> Value;
    fn example() -> Value;
}

/// What the document says of one endpoint.
pub(crate) struct Operation {
    summary: &'static str,
    description: &'static str,
    security: Vec<Value>,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: BTreeMap<u16, Answers>,
}

/// What is said of all answers with one status.
#[derive(Default)]
struct Answers {
    description: String,
    shapes: Vec<Shape>,
    examples: Map<String, Value>,
    headers: Vec<HeaderName>,
}

#[derive(Clone, Copy)]
enum Shape {
    Type(fn(&mut SchemaGenerator) -> Schema),
    Named(&'static str),
}

impl Api {
    pub(crate) fn new() -> Self {
        let settings = SchemaSettings::draft2020_12()
            .with(|settings| settings.definitions_path = "/components/schemas".into())
            .for_serialize();
        Self {
            router: Router::new(),
            schemas: settings.into_generator(),
            paths: BTreeMap::new(),
        }
    }

    pub(crate) fn get<T: 'static>(
        self,
        path: &'static str,
        handler: impl Handler<T, App>,
        operation: Operation,
    ) -> Self {
        self.route("GET", MethodFilter::GET, path, handler, operation)
    }

    pub(crate) fn post<T: 'static>(
        self,
        path: &'static str,
        handler: impl Handler<T, App>,
        operation: Operation,
    ) -> Self {
        self.route("POST", MethodFilter::POST, path, handler, operation)
    }

    pub(crate) fn delete<T: 'static>(
        self,
        path: &'static str,
        handler: impl Handler<T, App>,
        operation: Operation,
    ) -> Self {
        self.route("DELETE", MethodFilter::DELETE, path, handler, operation)
    }

    fn route<T: 'static>(
        mut self,
        method: &'static str,
        filter: MethodFilter,
        path: &'static str,
        handler: impl Handler<T, App>,
        operation: Operation,
    ) -> Self {
        let endpoint = only(method, axum::routing::on(filter, handler));
        self.router = self.router.route(path, endpoint);
        let described = operation.describe(method, path, &mut self.schemas);
        let method = method.to_ascii_lowercase();
        self.paths
            .entry(path)
            .or_default()
            .insert(method, described);
        self
    }

    /// The endpoints, and the document about them.
    pub(crate) fn finish(mut self) -> (Router<App>, Value) {
        let mut schemas = self.schemas.take_definitions(true);
        schemas.extend(refusals());
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "auth-api",
                "version": VERSION,
                "description": ABOUT,
                "license": {"name": "AGPL-3.0-only", "identifier": "AGPL-3.0-only"},
            },
            "servers": [{"url": "/"}],
            "paths": self.paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {
                    BEARER: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                },
            },
        });
        (self.router, document)
    }
}

const BEARER: &str = "accessToken";

impl Operation {
    pub(crate) fn new(summary: &'static str, description: &'static str) -> Self {
        Self {
            summary,
            description,
            security: Vec::new(),
            parameters: Vec::new(),
            body: None,
            answers: BTreeMap::new(),
        }
    }

    /// It needs an access token.
    pub(crate) fn bearer(mut self) -> Self {
        self.security.push(json!({BEARER: []}));
        self
    }

    /// It takes a body.
    pub(crate) fn takes<B: Body>(mut self) -> Self {
        let content = json!({"schema": B::schema(), "example": B::example()});
        self.body = Some(json!({"required": true, "content": {JSON: content}}));
        self.refuses(crate::body::refusals())
    }

    /// It takes a part of the path.
    pub(crate) fn path(mut self, name: &str, description: &str, example: &str) -> Self {
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

    /// It answers well.
    pub(crate) fn answers<T: Serialize + JsonSchema>(
        mut self,
        status: StatusCode,
        description: &str,
        example: &T,
    ) -> Self {
        let answers = self.answers.entry(status.as_u16()).or_default();
        description.clone_into(&mut answers.description);
        answers
            .shapes
            .push(Shape::Type(SchemaGenerator::subschema_for::<T>));
        let example = serde_json::to_value(example).expect("what is answered is JSON");
        answers
            .examples
            .insert("good".to_owned(), json!({"value": example}));
        self
    }

    /// It refuses, in each of these ways.
    pub(crate) fn refuses(mut self, errors: impl IntoIterator<Item = Error>) -> Self {
        for refusal in errors.into_iter().map(Refusal::from) {
            let answers = self.answers.entry(refusal.status.as_u16()).or_default();
            answers.add(&refusal);
        }
        self
    }

    fn describe(self, method: &str, path: &str, schemas: &mut SchemaGenerator) -> Value {
        let privacy = Privacy::of(path);
        let answers: Map<_, _> = self
            .answers
            .into_iter()
            .map(|(status, answers)| (status.to_string(), answers.describe(privacy, schemas)))
            .collect();
        let mut operation = json!({
            "operationId": id(method, path),
            "summary": self.summary,
            "description": self.description,
            "parameters": self.parameters,
            "security": self.security,
            "responses": answers,
        });
        if let Some(body) = self.body {
            operation["requestBody"] = body;
        }
        operation
    }
}

const JSON: &str = "application/json";

/// `POST /api/logout-all` is `post_logout_all`.
fn id(method: &str, path: &str) -> String {
    let words = path.trim_start_matches("/api").replace(['/', '-'], "_");
    method.to_ascii_lowercase() + &words.replace(['{', '}'], "")
}

impl Answers {
    fn add(&mut self, refusal: &Refusal) {
        let said = |field| refusal.body.get(field).and_then(Value::as_str);
        let (shape, text) = match (said("detail"), said("message")) {
            (Some(detail), _) => (DETAIL, detail),
            (None, Some(message)) => (MESSAGE, message),
            (None, None) => (PROBLEMS, "What is wrong with the body"),
        };
        let is_known = |known: &Shape| matches!(known, Shape::Named(name) if *name == shape);
        if !self.shapes.iter().any(is_known) {
            self.shapes.push(Shape::Named(shape));
        }
        if !self.description.contains(text) {
            if !self.description.is_empty() {
                self.description.push_str(" · ");
            }
            self.description.push_str(text);
        }
        let key = text.to_lowercase().replace(' ', "_");
        self.examples.insert(key, json!({"value": refusal.body}));
        self.headers
            .extend(refusal.header.as_ref().map(|(name, _)| name.clone()));
    }

    fn describe(self, privacy: Privacy, schemas: &mut SchemaGenerator) -> Value {
        let all = self.examples.len();
        let mut shapes: Vec<_> = self
            .shapes
            .iter()
            .map(|shape| match shape {
                Shape::Type(schema) => schema(schemas).to_value(),
                Shape::Named(name) => json!({"$ref": format!("#/components/schemas/{name}")}),
            })
            .collect();
        let schema = match shapes.len() {
            1 => shapes.remove(0),
            _ => json!({"oneOf": shapes}),
        };
        let mut headers = json!({
            X_CONTENT_TYPE_OPTIONS.as_str(): {"required": true, "schema": {"const": "nosniff"}},
        });
        if privacy == Privacy::Personal {
            headers[CACHE_CONTROL.as_str()] =
                json!({"required": true, "schema": {"const": "no-store"}});
        }
        for name in &self.headers {
            let sent = self.headers.iter().filter(|other| *other == name).count();
            headers[name.as_str()] = json!({"required": sent == all, "schema": header(name)});
        }
        json!({
            "description": self.description,
            "headers": headers,
            "content": {JSON: {"schema": schema, "examples": self.examples}},
        })
    }
}

/// What a header's value looks like.
fn header(name: &HeaderName) -> Value {
    match name.as_str() {
        "retry-after" => json!({"type": "integer", "minimum": 1, "description": "Seconds."}),
        _ => json!({"type": "string"}),
    }
}

const DETAIL: &str = "Detail";
const MESSAGE: &str = "Message";
const PROBLEMS: &str = "Problems";

/// What the bodies of refusals look like.
fn refusals() -> [(String, Value); 3] {
    let object = |field: &str, schema: Value| json!({"type": "object", "required": [field], "properties": {field: schema}});
    [
        (
            DETAIL.to_owned(),
            object("detail", json!({"type": "string"})),
        ),
        (
            MESSAGE.to_owned(),
            object("message", json!({"type": "string"})),
        ),
        (
            PROBLEMS.to_owned(),
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
