//! Wakes readers of growing files: one inotify instance for the whole process (the kernel allows 128 per user).

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

struct Instance(Inotify);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

type Watches = Mutex<HashMap<WatchDescriptor, Weak<Notify>>>;

/// Watches files for new bytes. Clones share the instance.
#[derive(Clone)]
pub struct Watcher {
    instance: Arc<AsyncFd<Instance>>,
    watches: Arc<Watches>,
}

impl Watcher {
    /// Starts watching; needs a tokio runtime, and lives as long as it.
    pub fn start() -> anyhow::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).context("inotify")?;
        #[expect(unsafe_code, reason = "tokio has no other way to wait for a file descriptor")]
        // SAFETY: the descriptor is owned by `Instance`, which `AsyncFd` owns, gives out by shared reference only and
        // drops after its registration; `as_raw_fd` returns the same open descriptor all that time.
        let instance = unsafe { AsyncFd::register_with_interest(Instance(inotify), Interest::READABLE) };
        let instance = Arc::new(instance.context("watch the inotify instance")?);
        let watches = Arc::<Watches>::default();
        let (weak, theirs) = (Arc::downgrade(&instance), watches.clone());
        tokio::spawn(async move {
            while let Some(instance) = weak.upgrade() {
                let Ok(mut guard) = instance.readable().await else { return };
                match instance.get_ref().0.read_events() {
                    Ok(events) => {
                        let watches = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                        for event in events {
                            if let Some(notify) = watches.get(&event.wd).and_then(Weak::upgrade) {
                                notify.notify_waiters();
                            }
                        }
                    }
                    Err(Errno::EAGAIN) => guard.clear_ready(),
                    Err(error) => {
                        tracing::error!(%error, "inotify stopped working");
                        return;
                    }
                }
            }
        });
        Ok(Self { instance, watches })
    }

    /// A handle that is notified whenever the file is written to. The file must exist.
    pub fn watch(&self, path: &Path) -> anyhow::Result<Arc<Notify>> {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|wd, notify| {
            let used = notify.strong_count() > 0;
            if !used {
                // The file may be gone, and its watch with it.
                let _ = self.instance.get_ref().0.rm_watch(*wd);
            }
            used
        });
        let wd = self
            .instance
            .get_ref()
            .0
            .add_watch(path, AddWatchFlags::IN_MODIFY)
            .with_context(|| format!("watch {}", path.display()))?;
        // The same file watched twice has one descriptor, so its watchers share one handle.
        if let Some(notify) = watches.get(&wd).and_then(Weak::upgrade) {
            return Ok(notify);
        }
        let notify = Arc::new(Notify::new());
        watches.insert(wd, Arc::downgrade(&notify));
        Ok(notify)
    }
}
