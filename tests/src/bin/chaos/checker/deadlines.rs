//! Deadlines: a gateway that works and can be reached responds to each request in time, whatever is behind it.

use std::time::Duration;

use crate::history::{GatewayId, Operation, Outcome, Span, Violation};

/// Time in which a gateway may be slow or unreachable for its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GatewayFault {
    pub(crate) gateway: GatewayId,
    pub(crate) span: Span,
}

/// Returns a violation for each request without a response, or with one after `deadline`, on a gateway without a fault.
pub(crate) fn check<'a>(
    operations: impl IntoIterator<Item = &'a Operation>,
    deadline: Duration,
    faults: &[GatewayFault],
) -> Vec<Violation> {
    let is_excused = |operation: &Operation| {
        faults.iter().any(|fault| {
            fault.gateway == operation.gateway && fault.span.overlaps(operation.span())
        })
    };
    operations
        .into_iter()
        .filter_map(|operation| {
            let duration = operation.ended.saturating_sub(operation.began);
            let problem = match &operation.outcome {
                Outcome::NoResponse(_) => "no response".to_owned(),
                _ if duration > deadline => format!("response after {duration:?}"),
                _ => return None,
            };
            (!is_excused(operation)).then(|| Violation {
                at: operation.began,
                text: format!("{problem} from a gateway without a fault: {operation}"),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Action, Time};

    const DEADLINE: Duration = Duration::from_secs(10);

    fn operation(span: (u64, u64), outcome: Outcome) -> Operation {
        Operation {
            gateway: GatewayId(0),
            began: Time::from_secs(span.0),
            ended: Time::from_secs(span.1),
            action: Action::TakeQuota,
            outcome,
        }
    }

    #[test]
    fn a_late_response_and_a_missing_one_are_found() {
        let missing = Outcome::NoResponse("connection closed".to_owned());
        let operations = [
            operation((0, 10), Outcome::Unavailable(504)),
            operation((0, 11), Outcome::Done),
            operation((0, 1), missing),
        ];
        assert_eq!(check(&operations, DEADLINE, &[]).len(), 2);
    }

    #[test]
    fn a_fault_of_its_gateway_excuses_a_request() {
        let operations = [operation((0, 11), Outcome::Done)];
        let (from, to) = (Time::from_secs(5), Time::from_secs(7));
        let fault = |number| GatewayFault {
            gateway: GatewayId(number),
            span: Span { from, to },
        };
        assert_eq!(check(&operations, DEADLINE, &[fault(0)]), []);
        assert_eq!(check(&operations, DEADLINE, &[fault(1)]).len(), 1);
    }
}
