//! The time-out of a connection's next request, on one timer for the connection's whole life.
//!
//! hyper makes a timer for each request and drops it when the request's head is there: at a hundred
//! thousand requests a second most of a runtime's timers' time is spent on timers that never fire.
//! Here a new wait only notes its deadline; the timer goes off at the deadline of an earlier one,
//! sees that there is a later one, and is set to it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Sleep as HyperSleep, Timer};
use tokio::time::{Instant, Sleep, sleep_until};

/// Of one connection, which waits for one thing at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct HeaderTimer(Arc<Mutex<Option<Pin<Box<Sleep>>>>>);

impl Timer for HeaderTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn HyperSleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn HyperSleep>> {
        Box::pin(Wait {
            alarm: self.clone(),
            deadline: deadline.into(),
        })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into_std()
    }
}

#[derive(Debug)]
struct Wait {
    alarm: HeaderTimer,
    deadline: Instant,
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut alarm = self.alarm.0.lock().unwrap_or_else(PoisonError::into_inner);
        let alarm = alarm.get_or_insert_with(|| Box::pin(sleep_until(self.deadline)));
        if alarm.deadline() > self.deadline {
            alarm.as_mut().reset(self.deadline);
        }
        while alarm.as_mut().poll(context).is_ready() {
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(self.deadline);
        }
        Poll::Pending
    }
}

impl HyperSleep for Wait {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_wait_ends_at_its_own_deadline() {
        let (alarm, second) = (HeaderTimer::default(), Duration::from_secs(1));
        let started = Instant::now();
        let given_up = tokio::time::timeout(second, alarm.sleep(3 * second)).await;
        assert!(given_up.is_err());
        alarm.sleep(3 * second).await;
        assert_eq!(
            started.elapsed(),
            4 * second,
            "later than the timer was set to at first"
        );
        alarm.sleep(second).await;
        assert_eq!(started.elapsed(), 5 * second, "after it went off");
        let given_up = tokio::time::timeout(second, alarm.sleep(60 * second)).await;
        assert!(given_up.is_err());
        alarm.sleep(second).await;
        assert_eq!(
            started.elapsed(),
            7 * second,
            "sooner than the timer was set to"
        );
    }
}
