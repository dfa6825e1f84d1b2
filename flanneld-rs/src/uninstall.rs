//! Uninstall: finds everything that the daemon put on this node by its marks, and gives the node back as it was before. No
//! store is asked, and nothing is remembered but the first values of sysctls: what carries our mark is ours.

mod report;

use crate::family::Family;
use crate::files::Files;
use crate::firewall;
use crate::ip_forward::{IpForward, Setting};
use crate::last_known;
use crate::options::Options;
use crate::running;
use crate::wireguard::Identity;
use kernel::netlink::{Netlink, RouteSpec};
use kernel::nft::{self, Nft};
use kernel::sysctl;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub use report::{Item, Outcome, Report};

/// One step back.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    RemoveFile(PathBuf),
    /// once nothing of what it tells is needed any more
    ForgetFirstValues(PathBuf),
    /// if nothing is in it
    RemoveDirectory(PathBuf),
    DeleteRoute(RouteSpec),
    DeleteLink(String),
    DeleteTable(nft::Family),
    GiveBack(Setting),
    /// stays, for a reason
    Keep(String, String),
}

/// Gives the node back, or, in a `dry_run`, tells what that would take. Goes on after failures.
pub fn uninstall(options: &Options, dry_run: bool) -> Report {
    if !dry_run && running::is_told(&options.state_dir) {
        let state_dir = options.state_dir.display().to_string();
        let reason = Outcome::Failed("a daemon runs, and would put everything back: stop it first".into());
        return Report { dry_run, items: vec![Item::new("daemon", state_dir, reason)] };
    }
    let (steps, mut items) = survey(options);
    let mut hands = Hands::default();
    for step in steps {
        let not_given_back = |item: &Item| item.kind == "sysctl" && matches!(item.outcome, Outcome::Failed(_));
        let outcome = match &step {
            Step::Keep(_, reason) => Outcome::Kept(reason.clone()),
            Step::ForgetFirstValues(_) if items.iter().any(not_given_back) => {
                Outcome::Kept("some of the first values have not been given back".into())
            }
            _ if dry_run => Outcome::Planned,
            _ => hands.carry_out(&step),
        };
        // Others still have something in there.
        if !matches!((&step, &outcome), (Step::RemoveDirectory(_), Outcome::Kept(_))) {
            items.push(item(&step, outcome));
        }
    }
    Report { dry_run, items }
}

/// What there is to be done, in its order: no pod is started any more once the conflist is gone; the routes go before what
/// they lead to; the records go last, so that an uninstall which was interrupted can be run again. With it, what could not
/// be looked at.
fn survey(options: &Options) -> (Vec<Step>, Vec<Item>) {
    let (mut steps, mut blind) = (Vec::new(), Vec::new());
    let mut failed = |kind: &str, error: String| blind.push(Item::new(kind, String::new(), Outcome::Failed(error)));
    let files = Files::of(options);
    steps.extend(files.written().into_iter().map(Step::RemoveFile));
    match routes_and_devices() {
        Ok(found) => steps.extend(found),
        Err(error) => failed("kernel", error.to_string()),
    }
    match tables() {
        Ok(found) => steps.extend(found),
        Err(error) => failed("table", error.to_string()),
    }
    let ip_forward = IpForward::recorded_in(&options.state_dir);
    let keep_record = match ip_forward.to_return() {
        Ok(back) => {
            let wait = back.waits;
            steps.extend(back.settings.into_iter().map(Step::GiveBack));
            steps.extend(back.kept.into_iter().map(|(key, reason)| Step::Keep(key, reason)));
            wait
        }
        Err(error) => {
            failed("sysctl", error);
            true
        }
    };
    let records = last_known::written(&options.state_dir).into_iter().chain(Identity::written(&options.state_dir));
    steps.extend(records.map(Step::RemoveFile));
    steps.extend(ip_forward.written().into_iter().filter(|_| !keep_record).map(Step::ForgetFirstValues));
    // The only directory that is made for the subnet file alone.
    let run =
        Path::new(ipam::subnet_env::DEFAULT_PATH).parent().filter(|run| options.subnet_file.parent() == Some(run));
    let directories = [Some(options.state_dir.as_path()), run].into_iter().flatten().filter(|path| path.exists());
    steps.extend(directories.map(|path| Step::RemoveDirectory(path.into())));
    (steps, blind)
}

fn routes_and_devices() -> kernel::Result<Vec<Step>> {
    let mut netlink = Netlink::open()?;
    let routes = netlink.routes()?.into_iter().filter(|route| route.protocol == kernel::ROUTE_PROTOCOL);
    let mut steps: Vec<Step> = routes
        .map(|route| {
            Step::DeleteRoute(RouteSpec {
                dst: route.dst,
                via: route.via,
                dev: route.dev,
                table: Some(route.table),
                metric: route.metric,
                kind: route.kind,
                ..RouteSpec::default()
            })
        })
        .collect();
    let links = netlink.links()?.into_iter().filter(|link| link.alias == kernel::LINK_ALIAS);
    steps.extend(links.map(|link| Step::DeleteLink(link.name)));
    Ok(steps)
}

fn tables() -> kernel::Result<Vec<Step>> {
    let mut nft = Nft::open()?;
    let mut steps = Vec::new();
    for family in Family::ALL.map(firewall::nft_family) {
        if nft.has_table(family, firewall::TABLE)? {
            steps.push(Step::DeleteTable(family));
        }
    }
    Ok(steps)
}

/// What a step is done with, opened when it is first needed.
#[derive(Default)]
struct Hands {
    netlink: Option<Netlink>,
    nft: Option<Nft>,
}

impl Hands {
    fn carry_out(&mut self, step: &Step) -> Outcome {
        let done = match step {
            Step::RemoveFile(path) | Step::ForgetFirstValues(path) => gone(fs::remove_file(path)),
            Step::RemoveDirectory(path) => match fs::remove_dir(path) {
                Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy) => {
                    return Outcome::Kept("others have something in it".into());
                }
                removed => gone(removed),
            },
            Step::DeleteRoute(route) => self.netlink(|netlink| netlink.delete_route(route)),
            Step::DeleteLink(name) => self.netlink(|netlink| netlink.delete_link(name)),
            Step::DeleteTable(family) => self.nft(|nft| nft.delete(*family, firewall::TABLE)),
            Step::GiveBack(Setting { key, value }) => {
                // The device that it was about may have gone with an earlier step.
                if sysctl::exists(key) { sysctl::set(key, value).map_err(|error| error.to_string()) } else { Ok(()) }
            }
            Step::Keep(_, reason) => return Outcome::Kept(reason.clone()),
        };
        done.map_or_else(Outcome::Failed, |()| Outcome::Done)
    }

    fn netlink(&mut self, act: impl FnOnce(&mut Netlink) -> kernel::Result<bool>) -> Result<(), String> {
        let outcome = match &mut self.netlink {
            Some(netlink) => act(netlink),
            none => Netlink::open().and_then(|netlink| act(none.insert(netlink))),
        };
        outcome.map(drop).map_err(|error| error.to_string())
    }

    fn nft(&mut self, act: impl FnOnce(&mut Nft) -> kernel::Result<bool>) -> Result<(), String> {
        let outcome = match &mut self.nft {
            Some(nft) => act(nft),
            none => Nft::open().and_then(|nft| act(none.insert(nft))),
        };
        outcome.map(drop).map_err(|error| error.to_string())
    }
}

/// Gone already is as good.
fn gone(removed: std::io::Result<()>) -> Result<(), String> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn item(step: &Step, outcome: Outcome) -> Item {
    let (kind, name) = match step {
        Step::RemoveFile(path) | Step::ForgetFirstValues(path) => ("file", path.display().to_string()),
        Step::RemoveDirectory(path) => ("directory", path.display().to_string()),
        Step::DeleteRoute(route) => ("route", route.to_string()),
        Step::DeleteLink(name) => ("link", name.clone()),
        Step::DeleteTable(family) => ("table", format!("{family} {}", firewall::TABLE)),
        Step::GiveBack(Setting { key, value }) => ("sysctl", format!("{key} = {value}")),
        Step::Keep(key, _) => ("sysctl", key.clone()),
    };
    Item::new(kind, name, outcome)
}
