//! The storages' own threads. One that panics does not come back, so its storage asks for a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Builder, JoinHandle};

use super::StorageError;

/// Starts a thread. Should it panic, `is_sound` becomes false.
pub(super) fn start(
    name: &'static str,
    is_sound: &Arc<AtomicBool>,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StorageError> {
    let watch = Watch { name, is_sound: Arc::clone(is_sound) };
    let watched = move || {
        let _watch = watch;
        run();
    };
    Builder::new()
        .name(name.to_owned())
        .spawn(watched)
        .map_err(|error| StorageError::Engine { doing: "starting a thread", cause: Arc::new(error) })
}

/// Sees how its thread ends.
struct Watch {
    name: &'static str,
    is_sound: Arc<AtomicBool>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.is_sound.store(false, Ordering::Relaxed);
            tracing::error!(
                thread = self.name,
                "a thread of the storage has panicked: only a restart brings it back"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_is_missed_and_one_that_ends_is_not() {
        let is_sound = Arc::new(AtomicBool::new(true));
        start("ends", &is_sound, || {}).unwrap().join().unwrap();
        assert!(is_sound.load(Ordering::Relaxed));
        assert!(start("panics", &is_sound, || panic!("on purpose")).unwrap().join().is_err());
        assert!(!is_sound.load(Ordering::Relaxed));
    }
}
