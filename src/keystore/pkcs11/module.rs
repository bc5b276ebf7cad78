//! A PKCS#11 module in this process: loaded, initialized, with sessions that are logged in; set up anew when that is lost.
//!
//! PKCS#11 keeps its state for the process as a whole: C_Initialize and C_Finalize are for every user of a module, and one login is
//! one for all sessions with that token. So there is one [`Module`] for a path, shared by all who use it.
//!
//! What is lost in the middle (a session, the login, a token that was unplugged, the way to a cluster) is set up once more from the start, and the
//! call made again; what fails twice is told. A process that was forked has lost everything too: PKCS#11 wants C_Initialize there, and
//! its parent's sessions are not its own.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11 as Library},
    error::{Error as CallError, RvError},
    session::{Session, SessionState, UserType},
    slot::{Slot, TokenInfo},
};
use parking_lot::{Mutex, RwLock};

use super::{error::Pkcs11Error, pin::PinKeeper};

/// Sessions with a token that are kept for the next call. Cards and small HSMs allow few.
const IDLE_SESSIONS_MAX: usize = 4;

/// The modules that are in use, by the paths of their files. The lock is held while one is looked up or let go.
static MODULES: Mutex<Vec<(PathBuf, Weak<Module>)>> = Mutex::new(Vec::new());

/// What is done to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its keys are used.
    Read,
    /// A key is made.
    Write,
}

/// A module that is loaded once something is to be done with it.
#[derive(Debug)]
pub struct Module {
    path: PathBuf,
    /// Read around every call into the module, written to set it up anew: C_Finalize while another thread is in a call is undefined.
    state: RwLock<State>,
}

/// What is lost when a module is set up anew.
#[derive(Debug)]
struct State {
    /// Counts how often it was set up, so that of many threads that notice a loss one does it.
    generation: u64,
    loaded: Option<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    /// The process that initialized the module.
    process: u32,
    library: Library,
    /// Who is logged in where. Held while logging in, so that it is done once.
    tokens: Mutex<Vec<Token>>,
}

/// A token to which there is a login.
#[derive(Debug)]
struct Token {
    label: String,
    slot: Slot,
    /// Never used: a token logs out when its last session is closed.
    _login: Session,
    idle: Vec<Session>,
}

impl Module {
    /// Returns the module of a path, which nobody but the user has chosen: it runs in this process.
    ///
    /// # Errors
    ///
    /// [`Pkcs11Error::Module`] when there is no such file, or no absolute path to it.
    pub fn open(path: &Path) -> Result<Arc<Self>, Pkcs11Error> {
        // A name without a slash would be looked for where libraries are.
        let path = path.canonicalize().map_err(|source| Pkcs11Error::ModuleFile {
            module: path.to_owned(),
            source,
        })?;
        let mut modules = MODULES.lock();
        // Only one that is returned is upgraded: to drop another here could be to drop its last user, under the lock that this takes.
        let mut of_path = modules.iter().filter(|(other, _)| *other == path);
        if let Some(module) = of_path.find_map(|(_, module)| module.upgrade()) {
            return Ok(module);
        }
        let state = State {
            generation: 0,
            loaded: None,
        };
        let module = Arc::new(Module {
            path: path.clone(),
            state: RwLock::new(state),
        });
        modules.push((path, Arc::downgrade(&module)));
        Ok(module)
    }

    /// Calls a token in a session that is logged in; once more after setting everything up anew if it was lost.
    ///
    /// # Errors
    ///
    /// The [`Pkcs11Error`] that says why not.
    pub fn call<T>(
        &self,
        access: Access,
        token: &str,
        pin: &PinKeeper,
        operation: impl Fn(&Session) -> Result<T, Pkcs11Error>,
    ) -> Result<T, Pkcs11Error> {
        let use_token = |loaded: &Loaded| loaded.call(&self.path, access, (token, pin), &operation);
        let (result, was_new, generation) = self.try_call(use_token);
        match result {
            // What was set up a moment ago is not better the second time.
            Err(error) if error.is_loss() && !was_new => {
                log::info!("{}: {error}: connecting anew", self.path.display());
                self.forget(generation);
                self.try_call(use_token).0
            }
            result => result,
        }
    }

    /// Calls a token; tells besides whether everything was set up for this call, and which setup it was.
    fn try_call<T>(
        &self,
        use_token: impl Fn(&Loaded) -> Result<T, Pkcs11Error>,
    ) -> (Result<T, Pkcs11Error>, bool, u64) {
        let mut was_new = false;
        loop {
            {
                let state = self.state.read();
                if let Some(loaded) = state.loaded.as_ref().filter(|loaded| loaded.is_own()) {
                    return (use_token(loaded), was_new, state.generation);
                }
            }
            let mut state = self.state.write();
            was_new = true;
            if let Err(error) = state.load(&self.path) {
                return (Err(error), was_new, state.generation);
            }
        }
    }

    /// Lets go of everything, unless someone has done so since.
    fn forget(&self, generation: u64) {
        let mut state = self.state.write();
        if state.generation == generation
            && let Some(loaded) = state.loaded.take()
        {
            loaded.finalize();
        }
    }
}

#[cfg(test)]
impl Module {
    /// Lets go of everything as if a loss had been noticed.
    pub fn lose(&self) {
        let generation = self.state.read().generation;
        self.forget(generation);
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let mut modules = MODULES.lock();
        modules.retain(|(_, module)| module.strong_count() > 0);
        // Whoever came for the same path just now uses the same initialization.
        let has_heir = modules.iter().any(|(path, _)| *path == self.path);
        if let Some(loaded) = self.state.get_mut().loaded.take()
            && !has_heir
        {
            loaded.finalize();
        }
    }
}

impl State {
    /// Loads and initializes the module, unless that is done.
    fn load(&mut self, path: &Path) -> Result<(), Pkcs11Error> {
        if self.loaded.as_ref().is_some_and(Loaded::is_own) {
            return Ok(());
        }
        self.loaded = None;
        let failed = |source| Pkcs11Error::Module {
            module: path.to_owned(),
            source,
        };
        let library = Library::new(path).map_err(failed)?;
        initialize(&library).map_err(failed)?;
        self.generation += 1;
        self.loaded = Some(Loaded {
            process: std::process::id(),
            library,
            tokens: Mutex::new(Vec::new()),
        });
        Ok(())
    }
}

fn initialize(library: &Library) -> Result<(), CallError> {
    let arguments = || CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    match library.initialize(arguments()) {
        // By a forked process's parent, which some modules do not notice, or by another library here, which will do so again.
        Err(CallError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {
            library.clone().finalize()?;
            library.initialize(arguments())
        }
        result => result,
    }
}

impl Loaded {
    fn call<T>(
        &self,
        module: &Path,
        access: Access,
        (token, pin): (&str, &PinKeeper),
        operation: impl Fn(&Session) -> Result<T, Pkcs11Error>,
    ) -> Result<T, Pkcs11Error> {
        let session = self.session(module, access, token, pin)?;
        let result = operation(&session)?;
        if access == Access::Write {
            return Ok(result);
        }
        // After an error an operation may be left active in the session: that one is closed.
        let mut tokens = self.tokens.lock();
        if let Some(known) = tokens.iter_mut().find(|known| known.label == token)
            && known.idle.len() < IDLE_SESSIONS_MAX
        {
            known.idle.push(session);
        }
        Ok(result)
    }

    /// Returns a session with a token, logged in.
    fn session(&self, module: &Path, access: Access, label: &str, pin: &PinKeeper) -> Result<Session, Pkcs11Error> {
        let mut tokens = self.tokens.lock();
        let at = match tokens.iter().position(|token| token.label == label) {
            Some(at) => at,
            None => {
                tokens.push(self.log_in(module, label, pin)?);
                tokens.len() - 1
            }
        };
        let token = &mut tokens[at];
        match (access, token.idle.pop()) {
            (Access::Read, Some(session)) => Ok(session),
            (Access::Read, None) => Ok(self.library.open_ro_session(token.slot)?),
            (Access::Write, idle) => {
                token.idle.extend(idle);
                Ok(self.library.open_rw_session(token.slot)?)
            }
        }
    }

    fn log_in(&self, module: &Path, label: &str, pin: &PinKeeper) -> Result<Token, Pkcs11Error> {
        let (slot, info) = self.find(module, label)?;
        let session = self.library.open_ro_session(slot)?;
        let is_in = matches!(
            session.get_session_info()?.session_state(),
            SessionState::RoUser | SessionState::RwUser
        );
        if info.login_required() && !is_in {
            let on_pad = info.protected_authentication_path();
            let logged_in = pin.log_in(label, on_pad, |pin| match pin {
                Some(pin) => session.login_with_raw(UserType::User, pin),
                None => session.login(UserType::User, None),
            });
            match logged_in {
                Err(Pkcs11Error::Call(CallError::Pkcs11(RvError::UserAlreadyLoggedIn, _))) => {}
                result => result?,
            }
        }
        Ok(Token {
            label: label.to_owned(),
            slot,
            _login: session,
            idle: Vec::new(),
        })
    }

    /// Finds the one token with a label.
    fn find(&self, module: &Path, label: &str) -> Result<(Slot, TokenInfo), Pkcs11Error> {
        let mut found = None;
        for slot in self.library.get_slots_with_token()? {
            // A reader with a card that the module does not understand is none of ours.
            let Ok(info) = self.library.get_token_info(slot) else {
                continue;
            };
            if info.token_initialized() && info.label() == label && found.replace((slot, info)).is_some() {
                return Err(Pkcs11Error::SeveralTokens {
                    token: label.to_owned(),
                });
            }
        }
        found.ok_or_else(|| Pkcs11Error::NoSuchToken {
            token: label.to_owned(),
            module: module.to_owned(),
        })
    }

    /// Ends all sessions and the initialization.
    fn finalize(self) {
        if !self.is_own() {
            return;
        }
        self.tokens.lock().clear();
        // It may be out of order; then there is nothing more to do.
        let _ = self.library.clone().finalize();
    }

    fn is_own(&self) -> bool {
        self.process == std::process::id()
    }
}

impl Drop for Loaded {
    /// Forgets what belongs to the process that forked this one: closing its sessions here could close them there.
    fn drop(&mut self) {
        if !self.is_own() {
            std::mem::forget(std::mem::take(self.tokens.get_mut()));
        }
    }
}
