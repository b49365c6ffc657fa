//! Interim responses of one request: those that the endpoint has sent, and those that the client has received.

#[derive(Default)]
pub(super) struct InterimResponses {
    /// Statuses that the endpoint has begun to send, of each arrival of the request.
    sent: Vec<Vec<u16>>,
    received: Vec<u16>,
}

impl InterimResponses {
    pub(super) fn send(&mut self, statuses: &[u16]) {
        self.sent.push(statuses.to_vec());
    }

    pub(super) fn receive(&mut self, status: u16) {
        self.received.push(status);
    }

    /// Returns whether none was received more often than sent.
    pub(super) fn are_forwarded_once(&self) -> bool {
        let count = |statuses: &mut dyn Iterator<Item = &u16>, status| {
            statuses.filter(|other| **other == status).count()
        };
        self.received.iter().all(|status| {
            let sent = count(&mut self.sent.iter().flatten(), *status);
            count(&mut self.received.iter(), *status) <= sent
        })
    }

    /// Returns whether those of the last arrival were received.
    pub(super) fn are_complete(&self) -> bool {
        let last = self.sent.last();
        last.is_none_or(|last| self.received.ends_with(last))
    }
}
