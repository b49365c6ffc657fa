//! Identity of requests: the user and the session behind an access token.
//!
//! A token that was verified is remembered by its SHA-256 under the lease of the session-invalidation protocol
//! (`session_invalidation`), so a request costs no round trip, and a logout takes effect before it is
//! acknowledged. Every other token is screened by what the gateway can check alone (form, expiry, and the
//! signature of an `EdDSA` token), and then checked at the verify endpoint of auth-api, which knows its session.
//!
//! Invariant: a request that begins after the end of its session was acknowledged has no identity. A
//! result is used only for requests that began before its check did, or by a valid lease.

mod authenticator;
mod bearer;
mod failure_limit;
mod key_set;
mod key_source;
mod revocations;
mod token;
mod user_identity;

pub(crate) use authenticator::{Authenticator, Found, IdentityError};
pub(crate) use key_set::KeySet;
pub(crate) use token::{Expected, Screened, Signature, screen};
pub(crate) use user_identity::{SESSION_ID, SharedIdentity, USER_ID, USER_LOGIN};
