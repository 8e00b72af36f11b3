//! IPMI against a real BMC's end of the protocol: OpenIPMI's `ipmi_sim` on loopback, with a wire between that loses
//! chosen replies. Needs the Debian packages openipmi, libopenipmi-dev, ipmitool and gcc; without them it fails.

#[expect(dead_code, reason = "serial over LAN is tested with the consoles")]
mod sim;

use crashyard_agent::controller::metal::chassis::Chassis as _;
use crashyard_agent::controller::metal::ipmi::{Bmc, Control};
use sim::Sim;

#[tokio::test]
async fn each_command_does_what_it_says_and_is_seen() {
    let sim = Sim::start().await;
    let bmc = sim.bmc(3);
    assert!(!bmc.is_on().await.unwrap());
    assert_eq!(bmc.power(true).await.unwrap(), "the BMC says that it is on");
    assert!(bmc.is_on().await.unwrap());
    assert_eq!(bmc.power(true).await.unwrap(), "the BMC says that it is on already");
    bmc.boot_from_network_once().await.unwrap();
    bmc.control(Control::Reset).await.unwrap();
    bmc.control(Control::Diagnostic).await.unwrap();
    bmc.power(false).await.unwrap();
    assert_eq!(sim.journal(), ["control 1", "boot 1", "control 3", "control 4", "control 0"]);
    let events = bmc.events().await.unwrap().unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(events[0].starts_with("1 |"), "{events:?}");
}

#[tokio::test]
async fn a_machine_shows_itself_to_who_looks_for_it() {
    let sim = Sim::start().await;
    for suite in [2, 3] {
        assert_eq!(sim.bmc(suite).identify(120).await.unwrap(), "its light is on for 120 s");
        assert_eq!(sim.bmc(suite).identify(0).await.unwrap(), "its light is off");
    }
    assert_eq!(sim.journal(), ["identify 120", "identify 0", "identify 120", "identify 0"]);
}

/// What this suite is called by BMCs that do not have it, so that a person knows what to change. OpenIPMI's has no SHA256.
#[tokio::test]
async fn a_suite_that_the_bmc_does_not_have_is_an_error_that_says_so() {
    let sim = Sim::start().await;
    let error = format!("{:#}", sim.bmc(17).control(Control::On).await.unwrap_err());
    assert!(error.contains("(suite 17)") && error.contains("invalid authentication algorithm"), "{error}");
    assert_eq!(sim.journal(), [""; 0]);
}

/// A BMC has few sessions (this one 63, and 10 for each user), and nobody waits until it has forgotten them.
#[tokio::test]
async fn a_session_is_closed_when_it_is_done_with() {
    let sim = Sim::start().await;
    let bmc = sim.bmc(3);
    for question in 0..70 {
        assert!(!bmc.is_on().await.unwrap(), "question {question}");
    }
    let sessions = sim.sessions().await;
    assert!(sessions.contains(": 1\n"), "only the one that asks is open: {sessions}");
}

#[tokio::test]
async fn ipmitool_speaks_the_other_suites() {
    let sim = Sim::start().await;
    let bmc = sim.bmc(2);
    assert!(!bmc.is_on().await.unwrap());
    bmc.power(true).await.unwrap();
    bmc.control(Control::Diagnostic).await.unwrap();
    bmc.power(false).await.unwrap();
    assert_eq!(sim.journal(), ["control 1", "control 4", "control 0"]);
    assert_eq!(bmc.events().await.unwrap().unwrap().len(), 1);
}

#[tokio::test]
async fn a_wrong_password_is_an_error_that_does_not_show_it() {
    let sim = Sim::start().await;
    for suite in [2, 3] {
        let bmc = Bmc { password: "mistyped".into(), ..sim.bmc(suite) };
        let error = format!("{:#} {bmc:?}", bmc.control(Control::On).await.unwrap_err());
        assert!(error.contains("admin@127.0.0.2") && !error.contains("mistyped"), "{error}");
    }
    assert_eq!(sim.journal(), [""; 0]);
}

#[tokio::test]
async fn a_lost_reply_repeats_a_question_and_power_but_never_an_nmi() {
    let sim = Sim::start().await;
    let bmc = sim.bmc(3);
    bmc.is_on().await.unwrap();
    // The last reply is to Close Session, the one before it to the command.
    let command = sim.wire.replies_of_last_session() - 1;

    sim.wire.lose_reply(command);
    assert!(!bmc.is_on().await.unwrap(), "asked again in a new session");
    assert!(sim.wire.lost());

    bmc.power(true).await.unwrap();
    sim.wire.lose_reply(command);
    let error = format!("{:#}", bmc.control(Control::Diagnostic).await.unwrap_err());
    assert!(error.contains("chassis control diag"), "{error}");
    assert_eq!(sim.journal(), ["control 1", "control 4"], "it may have arrived, so it is not sent again");
}
