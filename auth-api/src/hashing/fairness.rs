//! Fair sharing of the hashing queue: longest queue drop (Suter et al., "Buffer management schemes for
//! supporting TCP in gigabit routers with per-flow queueing", 1999).
//!
//! When the queue is full, a job of the client with the most jobs makes room for that of a client with
//! fewer. Jobs that are being hashed count too: else a client could fill a short queue again and again
//! with single jobs. A lone client may use the whole queue; as soon as others need it, each gets an equal
//! share, and only the clients that ask for more are refused.

use std::collections::HashMap;
use std::net::IpAddr;

/// Client that a job is counted for, by the address that the gateway forwards. An IPv6 client is its /64
/// network, as in the gateway's quotas, since one client usually has all addresses of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ClientKey {
    Address(IpAddr),
    /// Requests that did not come through the gateway, and the command line.
    Unknown,
}

impl From<&str> for ClientKey {
    fn from(address: &str) -> Self {
        match address.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            Ok(IpAddr::V6(v6)) => Self::Address(IpAddr::V6((v6.to_bits() >> 64 << 64).into())),
            Ok(v4) => Self::Address(v4),
            Err(_) => Self::Unknown,
        }
    }
}

/// Returns the index of the queued job that makes room for one of `newcomer`: the last one of the client
/// with the most jobs, queued and being hashed together. Returns `None` if no client with a queued job has
/// at least two more jobs than the newcomer, with whom it would only change places.
pub(super) fn job_to_displace(
    queued: &[ClientKey],
    hashing: &[ClientKey],
    newcomer: ClientKey,
) -> Option<usize> {
    let mut counts = HashMap::from([(newcomer, 0_usize)]);
    for client in queued.iter().chain(hashing) {
        *counts.entry(*client).or_default() += 1;
    }
    let own = counts[&newcomer];
    let (index, most) = queued
        .iter()
        .enumerate()
        .map(|(index, client)| (index, counts[client]))
        .max_by_key(|(_, count)| *count)?;
    (most > own + 1).then_some(index)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(number: u8) -> ClientKey {
        ClientKey::Address([192, 0, 2, number].into())
    }

    #[test]
    fn the_last_job_of_the_client_with_the_most_jobs_is_displaced() {
        let jobs = [1, 2, 1, 1, 2].map(client);
        assert_eq!(job_to_displace(&jobs, &[], client(3)), Some(3));
        assert_eq!(job_to_displace(&jobs, &[], client(1)), None);
        assert_eq!(job_to_displace(&jobs, &[], client(2)), None);
        assert_eq!(job_to_displace(&[], &[], client(1)), None);
        assert_eq!(job_to_displace(&[1, 2].map(client), &[], client(3)), None);
    }

    #[test]
    fn jobs_that_are_being_hashed_count() {
        let (queued, hashing) = ([client(1)], [1, 1, 1].map(client));
        assert_eq!(job_to_displace(&queued, &hashing, client(2)), Some(0));
        assert_eq!(job_to_displace(&queued, &[], client(2)), None);
        let hashing = [1, 2, 2].map(client);
        assert_eq!(job_to_displace(&queued, &hashing, client(2)), None);
    }

    #[test]
    fn an_ipv6_client_is_its_64_network() {
        let key = |text: &str| ClientKey::from(text);
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_eq!(key("-"), ClientKey::Unknown);
    }

    proptest! {
        /// In a full queue, whatever one client does, a client below its equal share is admitted.
        #[test]
        fn a_client_below_its_share_is_admitted(arrivals in proptest::collection::vec(0..4_u8, 0..200)) {
            const CAPACITY: usize = 12;
            let mut jobs = Vec::new();
            for newcomer in arrivals.into_iter().map(client) {
                let own = jobs.iter().filter(|job| **job == newcomer).count();
                if jobs.len() == CAPACITY {
                    let Some(index) = job_to_displace(&jobs, &[], newcomer) else {
                        prop_assert!(own + 1 >= CAPACITY / 4, "refused with {own} jobs");
                        continue;
                    };
                    jobs.remove(index);
                }
                jobs.push(newcomer);
            }
        }
    }
}
