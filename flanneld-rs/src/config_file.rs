//! The network configuration as a file: read whole, and followed through whatever links lead to it.

use crate::network_config::MAX_BYTES;
use crate::store::StoreError;
use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask};
use ipam::regular_file::read_bounded;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// A look without an event, in case the file system sends none (as NFS does for what other machines write).
const LOOK: Duration = Duration::from_secs(60);
/// The same where there is nothing to be notified of, as while its directory does not exist.
const POLL: Duration = Duration::from_secs(5);
/// As many links as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// A file that holds the network configuration.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: PathBuf,
}

impl fmt::Display for ConfigFile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.path.display())
    }
}

impl ConfigFile {
    /// The file of this name, whether it exists or not.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        ConfigFile { path: path.into() }
    }

    /// The text.
    ///
    /// # Errors
    /// `Unavailable` while it is not there or cannot be read, `Invalid` if it is no text.
    pub async fn read(&self) -> Result<String, StoreError> {
        let file = self.clone();
        let read = tokio::task::spawn_blocking(move || file.read_now()).await;
        read.unwrap_or_else(|error| Err(StoreError::Unavailable(format!("reading {}: {error}", self.path.display()))))
    }

    pub(crate) fn read_now(&self) -> Result<String, StoreError> {
        let path = self.path.display();
        match read_bounded(&self.path, MAX_BYTES) {
            Ok(Some((text, _))) => {
                String::from_utf8(text).map_err(|_| StoreError::Invalid(format!("{path} is no UTF-8 text")))
            }
            Ok(None) => Err(StoreError::Unavailable(format!(
                "{path} is not there yet: write the network configuration to it, or name a file with --net-config-path"
            ))),
            Err(error) => Err(StoreError::Unavailable(format!("reading {path}: {error}"))),
        }
    }

    /// Wakes `wake` now and whenever the file may have changed, until it is dropped.
    pub async fn follow(self, wake: watch::Sender<()>) {
        loop {
            // Notifications first, then the look that the wake is for: a change between the two is seen twice, not never.
            let watches = self.watches();
            wake.send_replace(());
            match watches {
                Ok(mut watches) => drop(timeout(LOOK, watches.change()).await),
                Err(error) => {
                    tracing::debug!("watching {}: {error}", self.path.display());
                    sleep(POLL).await;
                }
            }
        }
    }

    fn watches(&self) -> io::Result<Watches> {
        let inotify = Inotify::init()?;
        // CLOSE_WRITE is for files that are written in place, all others for files and links that are renamed into place.
        let mask = WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE | WatchMask::CLOSE_WRITE;
        let mask = mask | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
        let mut names = HashMap::new();
        for (directory, own) in places(&self.path)? {
            // Two ways to one directory are one watch.
            let known: &mut BTreeSet<OsString> = names.entry(inotify.watches().add(directory, mask)?).or_default();
            known.extend(own);
        }
        Ok(Watches { events: inotify.into_event_stream([0; 4096])?, names })
    }
}

/// The names by which the file is reached, in the directories that they are in.
struct Watches {
    events: EventStream<[u8; 4096]>,
    names: HashMap<WatchDescriptor, BTreeSet<OsString>>,
}

impl Watches {
    /// Waits for an event that is about one of the names, or about a directory itself; a while if no more come.
    async fn change(&mut self) {
        while let Some(Ok(event)) = self.events.next().await {
            let names = self.names.get(&event.wd);
            if event.name.is_none_or(|name| names.is_some_and(|names| names.contains(&name))) {
                return;
            }
        }
        sleep(POLL).await;
    }
}

/// The directories in which a change of some name leads the path to another file: that of the file, and those of all links on
/// the way, such as the `..data` by which a mounted ConfigMap is exchanged.
fn places(path: &Path) -> io::Result<BTreeMap<PathBuf, BTreeSet<OsString>>> {
    let mut places: BTreeMap<PathBuf, BTreeSet<OsString>> = BTreeMap::new();
    let parts =
        |path: &Path| -> Vec<PathBuf> { path.components().map(|part| PathBuf::from(part.as_os_str())).collect() };
    let mut ahead: VecDeque<PathBuf> = parts(&std::path::absolute(path)?).into();
    let (mut at, mut links) = (PathBuf::new(), 0);
    while let Some(part) = ahead.pop_front() {
        let Some(Component::Normal(name)) = part.components().next() else {
            // The root, or a step up or to nowhere.
            if part == Path::new("..") {
                at.pop();
            } else {
                at.push(part);
            }
            continue;
        };
        let link = fs::read_link(at.join(name)).ok();
        if link.is_some() || ahead.is_empty() {
            places.entry(at.clone()).or_default().insert(name.to_owned());
        }
        match link {
            Some(_) if links == MOST_LINKS => return Err(io::Error::other("too many links lead to it")),
            Some(target) => {
                links += 1;
                parts(&target).into_iter().rev().for_each(|part| ahead.push_front(part));
            }
            None => at.push(name),
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Steps after each of which the file has another text, and one that changes nothing about it.
    #[test]
    fn every_way_to_change_a_file_is_noticed() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (mount, other) = (directory.path().join("mount"), directory.path().join("other"));
        for (directory, text) in [("..first", "1"), ("..second", "6"), ("..third", "7")] {
            fs::create_dir_all(mount.join(directory)).unwrap();
            fs::write(mount.join(directory).join("conf"), text).unwrap();
        }
        fs::create_dir_all(&other).unwrap();
        let path = mount.join("conf");
        type Step<'a> = (&'a str, Box<dyn Fn() + 'a>);
        let swap = |to: &str| {
            symlink(to, mount.join("..tmp")).unwrap();
            fs::rename(mount.join("..tmp"), mount.join("..data")).unwrap();
        };
        let steps: [Step<'_>; 8] = [
            ("0", Box::new(|| fs::write(&path, "0").unwrap())),
            ("2", Box::new(|| fs::write(&path, "2").unwrap())),
            (
                "3",
                Box::new(|| {
                    fs::write(mount.join(".swp"), "3").unwrap();
                    fs::rename(mount.join(".swp"), &path).unwrap();
                }),
            ),
            (
                "1",
                Box::new(|| {
                    fs::remove_file(&path).unwrap();
                    symlink("..first", mount.join("..data")).unwrap();
                    symlink("..data/conf", &path).unwrap();
                }),
            ),
            ("6", Box::new(|| swap("..second"))),
            ("7", Box::new(|| swap("..third"))),
            ("8", Box::new(|| fs::write(mount.join("..third/conf"), "8").unwrap())),
            (
                "9",
                Box::new(|| {
                    fs::write(other.join("conf"), "9").unwrap();
                    fs::remove_file(&path).unwrap();
                    symlink("../other/conf", &path).unwrap();
                }),
            ),
        ];
        runtime.block_on(async {
            let file = ConfigFile::at(&path);
            let (wake, mut woken) = watch::channel(());
            let task = tokio::spawn(file.clone().follow(wake));
            assert!(matches!(file.read().await, Err(StoreError::Unavailable(why)) if why.contains("not there yet")));
            for (text, step) in steps {
                step();
                let seen = timeout(LIMIT, async {
                    while file.read().await.as_deref() != Ok(text) {
                        woken.changed().await.unwrap();
                    }
                });
                assert!(seen.await.is_ok(), "{text} is not seen");
                // The watches that go with the new links are in place once there are no more wakes.
                while timeout(Duration::from_millis(50), woken.changed()).await.is_ok() {}
            }
            fs::write(mount.join("unconcerned"), "x").unwrap();
            assert!(timeout(Duration::from_millis(50), woken.changed()).await.is_err(), "another file is no news");
            task.abort();
        });
    }

    #[test]
    fn a_circle_of_links_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        symlink("b", directory.path().join("a")).unwrap();
        symlink("a", directory.path().join("b")).unwrap();
        assert!(places(&directory.path().join("a")).is_err());
        assert!(matches!(ConfigFile::at(directory.path().join("a")).read_now(), Err(StoreError::Unavailable(_))));
    }
}
