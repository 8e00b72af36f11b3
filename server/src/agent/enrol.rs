//! Enrolment: a controller announces itself and its machines.

use crate::app::AppState;
use crate::auth::Controller;
use crate::db::DbError;
use crate::db::machine::{self, ControllerRow, Labels, MachineRow};
use crate::error::{AppError, AppResult};
use crate::extract::{Json, check_name, check_path_name};
use axum::extract::State;
use crashyard_protocol::agent::{EnrolRequest, Enrolled};
use crashyard_protocol::{ControllerId, MachineId, MachineState};
use std::collections::BTreeMap;

/// Labels a machine may have; more are a mistake.
const LABELS_MAX: usize = 64;

/// Announces a controller and its machines; repeating it is harmless.
#[utoipa::path(post, path = "/agent/v1/enrol", tag = "agent", request_body = EnrolRequest,
    responses((status = 200, body = Enrolled)))]
pub async fn enrol(
    _: Controller,
    State(state): State<AppState>,
    Json(request): Json<EnrolRequest>,
) -> AppResult<Json<Enrolled>> {
    check(&request)?;
    let now = state.now();
    let mut tx = state.db.begin().await?;
    let controller = machine::put_controller(
        &mut tx,
        &ControllerRow {
            id: ControllerId::from_ulid(state.ids.next()),
            name: request.name,
            version: request.version,
            created_at: now,
            last_seen_at: now,
        },
    )
    .await?;
    machine::withdraw_machines(&mut tx, &controller.id).await?;
    let (mut machines, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for spec in request.machines {
        let row = MachineRow {
            id: MachineId::from_ulid(state.ids.next()),
            name: spec.name,
            driver: spec.driver,
            controller_id: controller.id.clone(),
            labels: sqlx::types::Json(spec.labels),
            announced: true,
            state: MachineState::Enrolled,
            reason: None,
            state_since: now,
            attempt_id: None,
            lease_epoch: 0,
            last_seen_at: now,
            created_at: now,
            quarantined_until: None,
            probation: 0,
            seen_labels: sqlx::types::Json(Labels::new()),
            differs: None,
            errand_owed: false,
        };
        let put = match machine::put_machine(&mut tx, &row).await {
            Ok(put) => put,
            Err(DbError::Conflict(why)) => {
                refused.insert(row.name, why);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        machine::match_machine(&mut tx, &put).await?;
        machines.insert(put.name, put.id);
    }
    tx.commit().await?;
    for id in machines.values() {
        // Its labels may be new: a claim that is waiting looks again.
        state.wake.wake(&crate::wake::Topic::Machine(id.clone()));
    }
    Ok(Json(Enrolled { controller: controller.id, machines, refused, lease_seconds: state.config.lease_seconds }))
}

fn check(request: &EnrolRequest) -> AppResult<()> {
    check_path_name("controller name", &request.name)?;
    check_name("version", &request.version)?;
    let mut names = std::collections::BTreeSet::new();
    for machine in &request.machines {
        check_path_name("machine name", &machine.name)?;
        check_path_name("driver", &machine.driver)?;
        check_labels(&machine.labels)?;
        if !names.insert(&machine.name) {
            return Err(AppError::Invalid(format!("machine {:?} is named twice", machine.name)));
        }
    }
    Ok(())
}

/// Labels are short words.
pub fn check_labels(labels: &Labels) -> AppResult<()> {
    if labels.len() > LABELS_MAX {
        return Err(AppError::Invalid(format!("at most {LABELS_MAX} labels")));
    }
    for (key, value) in labels {
        check_path_name("label", key)?;
        check_name("label value", value)?;
    }
    Ok(())
}
