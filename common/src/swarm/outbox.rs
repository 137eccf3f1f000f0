//! The actions that wait for the driver.

use std::collections::VecDeque;

use super::io::Output;

/// Outputs in order. Most inputs have one at most, which needs no memory apart.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    first: Option<Output>,
    /// Those after the first.
    rest: VecDeque<Output>,
}

impl Outbox {
    pub(super) fn push(&mut self, output: Output) {
        if self.first.is_none() {
            self.first = Some(output);
        } else {
            self.rest.push_back(output);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Output> {
        let first = self.first.take()?;
        self.first = self.rest.pop_front();
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::UploadId;

    #[test]
    fn outputs_keep_their_order() {
        let serve = |upload| Output::Serve {
            upload: UploadId(upload),
        };
        let mut outbox = Outbox::default();
        outbox.push(serve(1));
        outbox.push(serve(2));
        outbox.push(serve(3));
        assert_eq!(outbox.pop(), Some(serve(1)));
        outbox.push(serve(4));
        let rest: Vec<Output> = core::iter::from_fn(|| outbox.pop()).collect();
        assert_eq!(rest, [serve(2), serve(3), serve(4)]);
        assert_eq!(outbox.pop(), None);
    }
}
