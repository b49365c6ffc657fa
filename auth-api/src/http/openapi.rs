//! OpenAPI 3.1 document, built from the endpoints' own descriptions, together with their router.
//!
//! A successful response is described by its type and an example, an error by the error value
//! itself, so that the document shows it as a client receives it.

mod operation;

use std::collections::BTreeMap;

use axum::Router;
use axum::handler::Handler;
use axum::routing::MethodFilter;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use operation::{CLIENT_SECURITY_SCHEME, SECURITY_SCHEME, error_schemas};
pub(crate) use operation::{Operation, RequestBody};

use super::error::only;
use crate::state::AppState;

const DESCRIPTION: &str = "Register, log in and out, and manage sessions. Clients reach this API through the gateway, which \
responds to some requests itself, always with `{\"error\": \"…\"}`: 400 for an ambiguous request, 429 over a quota \
(with `RateLimit-Policy`, `RateLimit` and `Retry-After`), 502, 503 and 504 while no replica is available.";

/// Version of the API. The version of the program is not published.
const VERSION: &str = "1";

/// Endpoints and their descriptions.
pub(crate) struct Api {
    router: Router<AppState>,
    schemas: SchemaGenerator,
    paths: BTreeMap<&'static str, Map<String, Value>>,
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
        handler: impl Handler<T, AppState>,
        operation: Operation,
    ) -> Self {
        self.route("GET", MethodFilter::GET, path, handler, operation)
    }

    pub(crate) fn post<T: 'static>(
        self,
        path: &'static str,
        handler: impl Handler<T, AppState>,
        operation: Operation,
    ) -> Self {
        self.route("POST", MethodFilter::POST, path, handler, operation)
    }

    pub(crate) fn delete<T: 'static>(
        self,
        path: &'static str,
        handler: impl Handler<T, AppState>,
        operation: Operation,
    ) -> Self {
        self.route("DELETE", MethodFilter::DELETE, path, handler, operation)
    }

    /// Adds an endpoint that accepts any method, described as one for GET.
    pub(crate) fn any<T: 'static>(
        mut self,
        path: &'static str,
        handler: impl Handler<T, AppState>,
        operation: Operation,
    ) -> Self {
        self.router = self.router.route(path, axum::routing::any(handler));
        self.describe("GET", path, operation)
    }

    fn route<T: 'static>(
        mut self,
        method: &'static str,
        filter: MethodFilter,
        path: &'static str,
        handler: impl Handler<T, AppState>,
        operation: Operation,
    ) -> Self {
        let endpoint = only(method, axum::routing::on(filter, handler));
        self.router = self.router.route(path, endpoint);
        self.describe(method, path, operation)
    }

    fn describe(mut self, method: &str, path: &'static str, operation: Operation) -> Self {
        let operation = operation.into_json(method, path, &mut self.schemas);
        let method = method.to_ascii_lowercase();
        self.paths
            .entry(path)
            .or_default()
            .insert(method, operation);
        self
    }

    /// Returns the router and the document.
    pub(crate) fn finish(mut self) -> (Router<AppState>, Value) {
        let mut schemas = self.schemas.take_definitions(true);
        schemas.extend(error_schemas());
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "auth-api",
                "version": VERSION,
                "description": DESCRIPTION,
                "license": {"name": "AGPL-3.0-only", "identifier": "AGPL-3.0-only"},
            },
            "servers": [{"url": "/"}],
            "paths": self.paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {
                    SECURITY_SCHEME: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                    CLIENT_SECURITY_SCHEME: {
                        "type": "http",
                        "scheme": "basic",
                        "description": "Id and secret of a client that an operator has registered.",
                    },
                },
            },
        });
        (self.router, document)
    }
}
