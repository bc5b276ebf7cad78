//! A clock that goes on while the machine sleeps, and a thread that waits for a time on it.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{read, write},
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
        timerfd_settime,
    },
};

/// The latest time that a timer is set for; nothing waits for a hundred years.
const LATEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Returns the time since the machine was started, sleep included.
pub fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Wakes a thread up at a time, at the end of a sleep during which that time went by, or when someone rings.
#[derive(Debug)]
pub struct Alarm {
    timer: OwnedFd,
    bell: OwnedFd,
}

impl Alarm {
    /// Makes an alarm.
    ///
    /// # Errors
    ///
    /// What timerfd_create(2) and eventfd(2) give.
    pub fn new() -> io::Result<Self> {
        Ok(Alarm {
            timer: timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?,
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Waits until a time since boot has come, or someone has rung since the last call.
    ///
    /// # Errors
    ///
    /// What timerfd_settime(2) and poll(2) give.
    pub fn wait_until(&self, time: Duration) -> io::Result<()> {
        // A time of 0 would disarm the timer.
        let time = time.clamp(Duration::from_nanos(1), LATEST);
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: time.as_secs() as i64,
                tv_nsec: time.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        let mut both = [
            PollFd::new(&self.timer, PollFlags::IN),
            PollFd::new(&self.bell, PollFlags::IN),
        ];
        match poll(&mut both, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Fails where nobody has rung.
        let _ = read(&self.bell, &mut [0; 8]);
        Ok(())
    }

    /// Ends the wait under way, or the next one.
    pub fn ring(&self) {
        // Fails only where it was rung 2^64 times and nobody waited.
        let _ = write(&self.bell, &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn it_wakes_up_at_its_time_and_when_rung() {
        let alarm = Arc::new(Alarm::new().unwrap());
        let time = since_boot() + Duration::from_millis(30);
        alarm.wait_until(time).unwrap();
        assert!(since_boot() >= time);
        alarm.wait_until(Duration::ZERO).unwrap();

        let far = since_boot() + Duration::from_secs(3600);
        alarm.ring();
        alarm.wait_until(far).unwrap();
        let ringer = alarm.clone();
        let ringing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            ringer.ring();
        });
        alarm.wait_until(Duration::MAX).unwrap();
        ringing.join().unwrap();
        assert!(since_boot() < far);
    }
}
