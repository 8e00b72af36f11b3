//! The capsule for scripts: stacks written out where they belong, log lines and module names as plain strings.

use crashyard_vmcore::Capsule;
use serde_json::{Value, json};

/// The capsule with `frames` in every CPU and task. Everything the capsule has and this does not rename keeps its name.
pub fn expanded(capsule: &Capsule) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(capsule)?;
    let stacks = value["stacks"].take();
    for list in ["cpus", "tasks"] {
        for item in value[list].as_array_mut().into_iter().flatten() {
            let stack = item["stack"].take().as_u64().and_then(|i| stacks.get(usize::try_from(i).ok()?));
            let Some(item) = item.as_object_mut() else { continue };
            item.remove("stack");
            item.insert("frames".into(), stack.map_or(Value::Null, |s| s["frames"].clone()));
            item.insert("stack_end".into(), stack.map_or(Value::Null, |s| s["end"].clone()));
        }
    }
    let details = value["modules"].take();
    value["modules"] = capsule.modules.iter().map(|m| json!(m.name)).collect();
    value["module_details"] = details;
    value["dmesg"] = capsule.dmesg.iter().map(|line| json!(line.stamped())).collect();
    if let Some(top) = value.as_object_mut() {
        top.remove("stacks");
    }
    Ok(value)
}
