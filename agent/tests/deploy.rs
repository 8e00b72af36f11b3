//! The example configuration that the project hands out.

use crashyard_agent::controller::Config;
use std::path::Path;

#[test]
fn the_example_configuration_is_one_that_a_controller_takes() {
    let config = Config::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/controller.toml"))).unwrap();
    assert_eq!(config.machines.len(), 1);
}
