//! Identification of a request on a path with the feature `auth`.

use crate::config::AuthRequirement;
use crate::http::downstream::Downstream;
use crate::http::message::RequestHeaders;
use crate::identity::{Found, IdentityError, SharedIdentity};
use crate::proxy::context::RequestContext;
use crate::proxy::disconnect::unless_disconnected;
use crate::proxy::error_response::ErrorResponse;
use crate::proxy::outcome::RequestOutcome;
use crate::proxy::state::GatewayState;

/// Returns the identity of a request, `None` for an anonymous one, which the path permits, and on a path without
/// `auth`.
///
/// A token that cannot be verified is an error even if the path permits anonymous requests: its sender expects
/// to be known.
///
/// # Errors
/// Returns the outcome of the request if it is rejected.
pub(super) async fn identify(
    gateway: &GatewayState,
    request: &RequestHeaders,
    context: &RequestContext,
    downstream: &mut impl Downstream,
) -> Result<Option<SharedIdentity>, RequestOutcome> {
    let Some(requirement) = context.route().features.auth else {
        return Ok(None);
    };
    let failed = |error| RequestOutcome::Failed(ErrorResponse::of_identity_error(error));
    // The configuration guarantees it; without it, no request has an identity.
    let Some(authenticator) = &context.active.authenticator else {
        return Err(failed(IdentityError::Unavailable));
    };
    match authenticator.find(&request.headers).map_err(failed)? {
        Found::Identity(identity) => Ok(Some(identity)),
        Found::Unchecked(token) => {
            // Boxed because it is rare: inline, it would enlarge the future of every request.
            let check = Box::pin(authenticator.check(token, context.client.key()));
            match unless_disconnected(downstream, check).await {
                Some(result) => result.map(Some).map_err(failed),
                None => Err(RequestOutcome::ClientDisconnected),
            }
        }
        Found::Anonymous => match requirement {
            AuthRequirement::Optional => {
                gateway.metrics.identity.anonymous.inc();
                Ok(None)
            }
            AuthRequirement::Required => {
                gateway.metrics.identity.missing.inc();
                Err(RequestOutcome::Failed(ErrorResponse::unauthenticated()))
            }
        },
    }
}
