//! Parsing of `tls` of an upstream group.

use rustls_pki_types::ServerName;

use crate::config::authorities::TrustedAuthorities;
use crate::config::certificate::{Certificate, CertificateFiles};
use crate::config::model::UpstreamTlsSettings;
use crate::config::node::{Mapping, Node};

/// Parses `tls` of a group.
pub(super) fn parse_upstream_tls(group: &mut Mapping<'_, '_>) -> Option<UpstreamTlsSettings> {
    let Some(mut mapping) = group.mapping("tls").ok()? else {
        return Some(UpstreamTlsSettings::default());
    };
    let server_name = mapping.get_or("server_name", None, |value| {
        value.parse(parse_server_name).map(Some)
    });
    let authorities = mapping.get_or("ca", None, |value| {
        let load = |file: &str| TrustedAuthorities::load(file.as_ref());
        value.parse(load).map(Some)
    });
    let client_certificate = parse_client_certificate(&mut mapping);
    mapping.reject_unknown_keys();
    Some(UpstreamTlsSettings {
        server_name: server_name?,
        authorities: authorities?,
        client_certificate: client_certificate?,
    })
}

fn parse_server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned()).map_err(|_| {
        format!("`{text}` is not a server name: write a host name or an address, without port")
    })
}

/// Parses `cert` and `key`. Returns `Some(None)` if the group has neither, `None` if they have an error.
#[expect(
    clippy::option_option,
    reason = "an error and an absent certificate are distinct"
)]
fn parse_client_certificate(tls: &mut Mapping<'_, '_>) -> Option<Option<Certificate>> {
    let (cert, key) = match (tls.get("cert"), tls.get("key")) {
        (None, None) => return Some(None),
        (Some(cert), Some(key)) => (cert, key),
        (Some(_), None) => {
            tls.report_error("`key` is missing: the private key of `cert`");
            return None;
        }
        (None, Some(_)) => {
            tls.report_error("`cert` is missing: the certificate of `key`");
            return None;
        }
    };
    let [cert_file, key_file] = [&cert, &key].map(Node::string);
    let files = CertificateFiles {
        cert: cert_file?.into(),
        key: key_file?.into(),
    };
    match Certificate::load(files) {
        Ok(certificate) => Some(Some(certificate)),
        Err(problems) => {
            for problem in problems {
                cert.report_error(problem);
            }
            None
        }
    }
}
