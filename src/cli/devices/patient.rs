//! Says what a command waits for: a token may want a touch or a PIN of its own, and foreign code may never answer.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use crate::{
    cli::{prompt, say, text},
    crypto::locked::LockedKey,
    format::keystore::RemoteKeyName,
    keystore::{
        Context, Provider, Reach,
        provider::{ProviderError, RemoteKeyState},
    },
};

/// How long an answer may take before it is said that it is waited for. Who is asked by the network is given up before.
const PATIENCE: Duration = Duration::from_secs(10);

/// Somebody who holds keys, and what is said while an answer does not come.
#[derive(Debug)]
struct Patient {
    provider: Arc<dyn Provider>,
    patience: Duration,
    tell: fn(&str),
}

/// Returns someone who holds keys such that users learn when they wait for an answer.
pub fn patient(provider: Arc<dyn Provider>) -> Arc<dyn Provider> {
    Arc::new(Patient {
        provider,
        patience: PATIENCE,
        tell: |message| {
            // It is the user who is waited for, then.
            if !prompt::is_up() {
                say(format_args!("{}", text::message(message)));
            }
        },
    })
}

impl Patient {
    fn wait<T>(&self, key: &RemoteKeyName, ask: impl FnOnce(&dyn Provider) -> T) -> T {
        let (answered, answers) = mpsc::channel::<()>();
        let message = format!("waiting for {}: key {key}", self.provider.name());
        let (patience, tell) = (self.patience, self.tell);
        let watch = move || {
            if answers.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                tell(&message);
            }
        };
        // Without a thread nobody is told, and the answer is as good.
        let _ = thread::Builder::new().name("waiting".into()).spawn(watch);
        let answer = ask(&*self.provider);
        drop(answered);
        answer
    }
}

impl Provider for Patient {
    fn name(&self) -> &'static str {
        self.provider.name()
    }

    fn generate(&self, key: &RemoteKeyName, context: &Context) -> Result<(LockedKey, Vec<u8>), ProviderError> {
        self.wait(key, |provider| provider.generate(key, context))
    }

    fn unwrap(&self, key: &RemoteKeyName, context: &Context, blob: &[u8]) -> Result<LockedKey, ProviderError> {
        self.wait(key, |provider| provider.unwrap(key, context, blob))
    }

    fn describe(&self, key: &RemoteKeyName) -> Result<RemoteKeyState, ProviderError> {
        self.wait(key, |provider| provider.describe(key))
    }

    fn reach(&self) -> Reach {
        self.provider.reach()
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::{Condvar, Mutex};

    use super::*;

    static TOLD: Mutex<Option<String>> = Mutex::new(None);
    static TELLS: Condvar = Condvar::new();

    fn tell(message: &str) {
        *TOLD.lock() = Some(message.to_owned());
        TELLS.notify_all();
    }

    /// Answers when the user was told that it does not.
    #[derive(Debug)]
    struct Slow;

    impl Provider for Slow {
        fn name(&self) -> &'static str {
            "a slow token"
        }

        fn generate(&self, _: &RemoteKeyName, _: &Context) -> Result<(LockedKey, Vec<u8>), ProviderError> {
            Err(ProviderError::NotFound)
        }

        fn unwrap(&self, _: &RemoteKeyName, _: &Context, _: &[u8]) -> Result<LockedKey, ProviderError> {
            let mut told = TOLD.lock();
            TELLS.wait_while(&mut told, |told| told.is_none());
            Err(ProviderError::Rejected)
        }

        fn describe(&self, _: &RemoteKeyName) -> Result<RemoteKeyState, ProviderError> {
            Err(ProviderError::NotFound)
        }
    }

    #[test]
    fn who_waits_for_an_answer_is_told_for_whose() {
        let patient = Patient {
            provider: Arc::new(Slow),
            patience: Duration::from_millis(1),
            tell,
        };
        let key = RemoteKeyName::AwsKms { arn: "arn:1".into() };
        let answer = patient.unwrap(&key, &Context::default(), &[]).map(drop);
        assert_eq!(answer, Err(ProviderError::Rejected));
        assert_eq!(TOLD.lock().as_deref(), Some("waiting for a slow token: key arn:1"));
    }
}
