//! IPMI against a real BMC's end of the protocol: OpenIPMI's `ipmi_sim` on loopback, with a wire between that loses
//! chosen replies. Needs the Debian packages openipmi, libopenipmi-dev, ipmitool and gcc; without them it fails.

#[expect(dead_code, reason = "serial over LAN is tested with the consoles")]
mod sim;

use crashyard_agent::controller::metal::chassis::Chassis as _;
use crashyard_agent::controller::metal::ipmi::Bmc;
use crashyard_agent::ipmi::chassis::Control;
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

/// What BMCs write when a machine crashes, and what only their vendors understand.
const EVENTS: [&str; 6] = [
    // A kernel's panic.
    "2 0 0 0 0 0x41 0 4 0x20 0x00 0x6f 0xa1 0x50 0x61",
    // A watchdog that resets.
    "2 0 0 0 0 0x20 0 4 0x23 0x71 0x6f 1 0xff 0xff",
    // A voltage below its threshold, and no longer.
    "2 0 0 0 0 0x20 0 4 0x02 0x30 0x81 0x52 0x10 0x20",
    // Of no meaning that the specification gives.
    "2 0 0 0 0 0x20 0 4 0xc5 0x31 0x70 0x0f 1 2",
    // Dell's, with a time; and one without.
    "0xc0 0 0 0 0 0xa2 0x02 0 1 2 3 4 5 6",
    "0xe1 1 2 3 4 5 6 7 8 9 10 11 12 13",
];

#[tokio::test]
async fn the_event_log_is_read_in_words_as_far_as_there_are_any_and_in_bytes() {
    let sim = Sim::with_events(&EVENTS).await;
    let events = sim.bmc(3).events().await.unwrap().unwrap();
    // Its own clock is in there, when the records were added to it: in words, and behind number and kind in bytes.
    let timeless = |line: &String| {
        let (words, bytes) = line.rsplit_once(" | ").expect("bytes");
        let words: Vec<&str> = words.split(" | ").filter(|word| !word.ends_with(" s after the BMC began")).collect();
        format!("{} | {} … {}", words.join(" | "), &bytes[..8], &bytes[21..])
    };
    assert_eq!(
        events.iter().map(timeless).collect::<Vec<_>>(),
        [
            "1 | OS Stop/Shutdown 0x00 | Run-time Critical Stop | asserted | 01 00 02 … 41 00 04 20 00 6f a1 50 61",
            "2 | Watchdog 2 0x71 | Hard Reset | asserted | 02 00 02 … 20 00 04 23 71 6f 01 ff ff",
            "3 | Voltage 0x30 | Lower Critical - going low | deasserted | 03 00 02 … 20 00 04 02 30 81 52 10 20",
            "4 | OEM (0xC5) 0x31 | event 0x0f of type 0x70 | asserted | 04 00 02 … 20 00 04 c5 31 70 0f 01 02",
            "5 | record 0xc0 of manufacturer 674 | 05 00 c0 … a2 02 00 01 02 03 04 05 06",
            "6 | record 0xe1 | 06 00 e1 … 05 06 07 08 09 0a 0b 0c 0d",
        ]
    );
    assert_eq!(sim.bmc(2).events().await.unwrap().unwrap().len(), events.len(), "as ipmitool has it");
    assert_eq!(Sim::with_events(&[]).await.bmc(3).events().await.unwrap(), Some(Vec::new()));
}

#[tokio::test]
async fn an_event_log_on_a_bad_wire_is_complete_and_no_entry_stands_for_another() {
    let sim = Sim::with_events(&EVENTS).await;
    let bmc = sim.bmc(3);
    let events = bmc.events().await.unwrap();
    // Behind it come the entry before the last one, the last one, and Close Session.
    let entry = sim.wire.replies_of_last_session() - 3;

    sim.wire.lose_reply(entry);
    assert_eq!(bmc.events().await.unwrap(), events);
    assert!(sim.wire.lost());

    sim.wire.repeat_reply(entry);
    assert_eq!(bmc.events().await.unwrap(), events);
    assert!(sim.wire.repeated());
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
