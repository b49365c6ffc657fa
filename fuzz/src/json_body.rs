//! JSON bodies: the value that is read, and the place of an error.

use auth_api::fuzz::string_in_body;
use serde_json::Value;

const FIELD: &str = "login";

/// Input: a body.
pub(crate) fn run(input: &[u8]) {
    let result = string_in_body(input, FIELD);
    let expected_problem = match serde_json::from_slice::<Value>(input) {
        Ok(Value::Object(object)) => match object.get(FIELD) {
            Some(Value::String(text)) => return assert_eq!(result.as_ref(), Ok(text)),
            Some(_) => "string_type",
            None => "missing",
        },
        Ok(Value::Null) => "missing",
        Ok(_) => "model_attributes_type",
        Err(_) if input.is_empty() => "missing",
        Err(_) => "json_invalid",
    };
    let problem = result.expect_err("the body is not valid");
    let problem: Value = serde_json::from_str(&problem).expect("the problem is JSON");
    assert_eq!(problem["type"], expected_problem);
    assert_eq!(problem["loc"][0], "body");
    if expected_problem == "json_invalid" {
        let characters = String::from_utf8_lossy(input).chars().count() as u64;
        let offset = problem["loc"][1].as_u64();
        assert!(
            offset.is_some_and(|offset| offset <= characters),
            "{problem}"
        );
    }
}
