//! What every benchmark needs first: a build, scenarios, a plan, a lab.

use crashyard_protocol::agent::{
    CHUNK_BYTES, Claim, ClaimRequest, CompleteRequest, EnrolRequest, Enrolled, MachineSpec,
};
use crashyard_protocol::api::{NewBuild, NewPlan, NewRun, Policy, Run};
use crashyard_protocol::chunk::{chunk_hash, hex};
use crashyard_protocol::client::Client;
use crashyard_protocol::{Boot, BuildId, Capture, Deadlines, Expect, Scenario, Trigger, VmxState};
use std::collections::BTreeMap;

/// Name of the plan that [`prepare`] stores.
pub const PLAN: &str = "bench";

/// Stores a build with two small files and a plan with `scenarios` scenarios.
pub async fn prepare(admin: &Client, scenarios: usize) -> anyhow::Result<BuildId> {
    let build = admin
        .create_build(&NewBuild {
            checkout: None,
            name: "bench".into(),
            architecture: "x86_64".into(),
            release: "6.1.0-bench".into(),
            build_id: None,
            config_name: None,
            cmdline: String::new(),
        })
        .await?;
    for name in ["kernel", "initrd"] {
        let bytes = name.repeat(100);
        let hash = hex(&chunk_hash(0, bytes.as_bytes()));
        let done = CompleteRequest { size: bytes.len() as u64, blake3: blake3::hash(bytes.as_bytes()).to_string() };
        admin.put_build_chunk(&build.id, name, 0, &hash, bytes.into()).await?;
        admin.complete_build_artifact(&build.id, name, &done).await?;
    }
    let names: Vec<String> = (0..scenarios).map(|i| format!("bench-{i}")).collect();
    for name in &names {
        admin.put_scenario(&scenario(name)).await?;
    }
    let selector = BTreeMap::from([("driver".to_owned(), "simulated".to_owned())]);
    admin
        .put_plan(&NewPlan {
            name: PLAN.into(),
            scenarios: names,
            selector,
            requires: Vec::new(),
            repetitions: 1,
            policy: Policy::default(),
        })
        .await?;
    Ok(build.id)
}

fn scenario(name: &str) -> Scenario {
    Scenario {
        name: name.to_owned(),
        title: "Simulated".into(),
        vmx: VmxState::None,
        vmx_number: None,
        trigger: Trigger::SysrqC,
        cpu: None,
        boot: Boot::default(),
        capture: Capture::default(),
        expect: Expect { panic: "sysrq triggered crash".into() },
        deadlines: Deadlines::default(),
    }
}

/// Submits one run of the plan.
pub async fn submit(admin: &Client, build: &BuildId) -> anyhow::Result<Run> {
    Ok(admin.create_run(&NewRun::new(build.clone(), PLAN)).await?)
}

/// Enrols a lab with `machines` machines.
pub async fn enrol(client: &Client, name: &str, machines: usize) -> anyhow::Result<Enrolled> {
    let machines = (0..machines)
        .map(|i| MachineSpec {
            name: format!("{name}-{i}"),
            driver: "simulated".into(),
            labels: BTreeMap::from([("driver".to_owned(), "simulated".to_owned())]),
        })
        .collect();
    Ok(client.enrol(&EnrolRequest { name: name.into(), version: "bench".into(), machines }).await?)
}

/// Claims until every machine of the lab has an attempt, and returns the leases.
pub async fn claim_all(client: &Client, lab: &Enrolled) -> anyhow::Result<Vec<Claim>> {
    let mut idle: Vec<_> = lab.machines.values().cloned().collect();
    let mut claims = Vec::new();
    while !idle.is_empty() {
        let request = ClaimRequest {
            controller: lab.controller.clone(),
            machines: idle.clone(),
            wait_seconds: 10,
            errands: false,
        };
        let Some(claim) = client.claim(&request).await? else { anyhow::bail!("no job for {} machines", idle.len()) };
        idle.retain(|machine| *machine != claim.machine);
        claims.push(claim);
    }
    Ok(claims)
}

/// One full chunk of bytes that do not compress and differ by `salt`.
pub fn noise(salt: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(CHUNK_BYTES).expect("4 MiB")];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}
