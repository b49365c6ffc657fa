//! Changes of the headers of requests and responses, as the operator configures them.
//!
//! Invariant: what is set or removed in requests does not reach an endpoint from a client in any spelling that a server
//! could take for it.

use http::{HeaderMap, HeaderName};

use crate::config::{HeaderChanges, folded_name, is_spelling_of};
use crate::http::h1::encode::put_header;

/// Changes of the headers of requests that are forwarded.
#[derive(Debug)]
pub(crate) struct RequestChanges {
    /// Names whose headers are not forwarded from the client, in lower case and with `-` for each separator.
    replaced: Vec<String>,
    /// Header lines that are sent instead, as HTTP/1.1 has them.
    pub(crate) lines: Box<[u8]>,
}

impl RequestChanges {
    /// Compiles changes, `None` if there are none.
    pub(crate) fn new(changes: &HeaderChanges) -> Option<Self> {
        if *changes == HeaderChanges::default() {
            return None;
        }
        let set = changes.set.iter().map(|(name, _)| name);
        let replaced = changes.remove.iter().chain(set);
        let mut lines = Vec::new();
        for (name, value) in changes.set.iter().chain(&changes.add) {
            put_header(&mut lines, name.as_str().as_bytes(), value.as_bytes());
        }
        Some(Self {
            replaced: replaced.map(|name| folded_name(name.as_str())).collect(),
            lines: lines.into(),
        })
    }

    /// Returns whether a header of the client is not forwarded.
    pub(crate) fn replace(&self, name: &HeaderName) -> bool {
        self.replaced
            .iter()
            .any(|replaced| is_spelling_of(name, replaced))
    }
}

/// Changes of the headers of responses.
#[derive(Debug)]
pub(crate) struct ResponseChanges {
    changes: HeaderChanges,
}

impl ResponseChanges {
    /// Compiles changes, `None` if there are none.
    pub(crate) fn new(changes: &HeaderChanges) -> Option<Self> {
        (*changes != HeaderChanges::default()).then(|| Self {
            changes: changes.clone(),
        })
    }

    /// Changes the headers of a response.
    pub(crate) fn apply_to(&self, response: &mut HeaderMap) {
        self.remove_from(response);
        for (name, value) in &self.changes.set {
            response.insert(name, value.clone());
        }
        for (name, value) in &self.changes.add {
            response.append(name, value.clone());
        }
    }

    /// Removes the headers that are to be removed.
    pub(crate) fn remove_from(&self, response: &mut HeaderMap) {
        for name in &self.changes.remove {
            response.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn changes(
        remove: &[&'static str],
        set: &[(&'static str, &'static str)],
        add: &[(&'static str, &'static str)],
    ) -> HeaderChanges {
        let name = HeaderName::from_static;
        let lines = |lines: &[(&'static str, &'static str)]| {
            let line = |(key, value): &(&'static str, &'static str)| {
                (name(key), HeaderValue::from_static(value))
            };
            lines.iter().map(line).collect()
        };
        HeaderChanges {
            remove: remove.iter().copied().map(name).collect(),
            set: lines(set),
            add: lines(add),
        }
    }

    #[test]
    fn no_spelling_of_a_header_that_is_set_or_removed_is_forwarded() {
        let changes = changes(
            &["cookie", "x_gone"],
            &[("x-tenant", "a")],
            &[("x-more", "b"), ("x-tenant", "c")],
        );
        let changes = RequestChanges::new(&changes).unwrap();
        for name in [
            "cookie", "x-gone", "x_gone", "x.gone", "x-tenant", "x_tenant", "x~tenant",
        ] {
            assert!(changes.replace(&HeaderName::from_static(name)), "{name}");
        }
        for name in [
            "x-more",
            "x-tenants",
            "xx-tenant",
            "x-tenan",
            "xtenant",
            "cookies",
        ] {
            assert!(!changes.replace(&HeaderName::from_static(name)), "{name}");
        }
        assert_eq!(
            &*changes.lines,
            b"x-tenant: a\r\nx-more: b\r\nx-tenant: c\r\n"
        );
    }

    #[test]
    fn a_response_is_changed_in_the_order_remove_set_add() {
        let changes = changes(
            &["x-a", "x-b", "x-c"],
            &[("x-b", "set"), ("x-d", "set")],
            &[("x-c", "added"), ("x-d", "added"), ("x-e", "added")],
        );
        let mut response = HeaderMap::new();
        for name in ["x-a", "x-b", "x-c", "x-d", "x-d", "x-e"] {
            response.append(name, HeaderValue::from_static("old"));
        }
        ResponseChanges::new(&changes)
            .unwrap()
            .apply_to(&mut response);
        let values = |name: &str| response.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert!(values("x-a").is_empty());
        assert_eq!(values("x-b"), ["set"]);
        assert_eq!(values("x-c"), ["added"]);
        assert_eq!(values("x-d"), ["set", "added"]);
        assert_eq!(values("x-e"), ["old", "added"]);
    }

    #[test]
    fn without_changes_there_is_nothing_to_apply() {
        let none = HeaderChanges::default();
        assert!(RequestChanges::new(&none).is_none() && ResponseChanges::new(&none).is_none());
    }
}
