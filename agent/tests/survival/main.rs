//! A controller that is killed at any point does no harm and finishes its attempt.
//!
//! The real controller runs against a fake server (over real HTTP) and a fake machine. Both count the moments at which
//! something becomes true outside the controller, and stop the world at a chosen one, right before or right after it
//! took effect; then the controller is dropped as `kill -9` would, and a new one is started on the same state
//! directory. Every gap between two entries of the journal lies between two such moments. What must hold after each
//! death is checked by the fakes themselves and at the end.

mod server;
mod world;

use crashyard_agent::controller::{Config, Controller, MachineConfig, Member, QemuConfig};
use crashyard_protocol::problem::kind;
use server::Server;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use world::{FakeDriver, World};

fn start(state: &Path, server: &Server, world: &Arc<World>) -> JoinHandle<()> {
    let machine = MachineConfig {
        name: "m1".into(),
        labels: BTreeMap::new(),
        cmdline: String::new(),
        server_from_machine: None,
        qemu: Some(QemuConfig::default()),
        bochs: None,
        metal: None,
    };
    let config = Config {
        name: "lab".into(),
        server: server.url.clone(),
        token_file: state.join("token"),
        state: state.to_owned(),
        netboot: None,
        machines: vec![machine.clone()],
    };
    std::fs::write(&config.token_file, "secret").unwrap();
    let member = Member { config: machine, driver: Arc::new(FakeDriver(world.clone())) };
    tokio::spawn(async move {
        // The controller before this one is gone once its tasks are dropped, which gives its lock back.
        let controller = loop {
            match Controller::open(&config, vec![member.clone()]) {
                Ok(controller) => break controller,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        controller.run(&CancellationToken::new()).await.expect("a controller goes on through everything");
    })
}

/// Runs one errand and one attempt, killing the controller at each of the given points in turn. `false` if the last of them was never
/// reached.
async fn story(kills: &[u64]) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let world = Arc::new(World::default());
    let server = Server::start(&world).await;
    server.want_off();
    let mut died_at_all = true;
    for kill in kills {
        world.arm(*kill);
        let controller = start(directory.path(), &server, &world);
        let died = tokio::select! {
            () = world.stopped() => true,
            () = server.idle() => false,
        };
        controller.abort();
        let _ = controller.await;
        world.disarm();
        if !died {
            died_at_all = false;
            break;
        }
    }
    if died_at_all {
        let controller = start(directory.path(), &server, &world);
        server.idle().await;
        controller.abort();
        let _ = controller.await;
    }
    server.check(&world, &format!("killed at {kills:?}"));
    let left = std::fs::read_dir(directory.path().join("attempts")).unwrap().count();
    assert_eq!(left, 0, "killed at {kills:?}: nothing is left to do");
    died_at_all
}

#[tokio::test]
async fn an_attempt_that_nobody_disturbs_comes_to_its_end() {
    assert!(!story(&[u64::MAX]).await);
}

#[tokio::test]
async fn a_death_at_any_point_repeats_no_act_and_loses_no_evidence() {
    let mut point = 1;
    while story(&[point]).await {
        point += 1;
    }
    // Enrol, claim, two downloads, power, console, reports, uploads, release: twice each, at least.
    assert!(point > 30, "only {point} points were met");
}

/// Its lease ran out while it was away. If nobody else has the machine, it must not go on; if somebody has, it is theirs.
#[tokio::test]
async fn a_controller_whose_lease_is_lost_powers_off_what_is_still_its_own() {
    for (kind, off) in [(kind::LEASE_LOST, true), (kind::MACHINE_TAKEN, false)] {
        let directory = tempfile::tempdir().unwrap();
        let world = Arc::new(World::default());
        let server = Server::start(&world).await;
        let controller = start(directory.path(), &server, &world);
        world.running().await;
        server.lose_lease(kind);
        server.idle().await;
        assert_eq!(world.anything_runs(), !off, "{kind}");
        assert_eq!(world.machines.lock().unwrap().values().map(|life| life.off).sum::<u32>() > 0, off, "{kind}");
        controller.abort();
        let _ = controller.await;
    }
}

#[tokio::test]
async fn two_deaths_in_a_row_do_no_more_harm_than_one() {
    // The second controller dies early as well: in the middle of finding out what the first one did.
    for first in (3..40).step_by(3) {
        for second in [1, 3, 4, 5, 7, 9, 12] {
            story(&[first, second]).await;
        }
    }
}
