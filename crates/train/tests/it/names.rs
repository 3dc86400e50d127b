//! The tables of `hub` name exactly the parameters that the models' graphs declare, with the same shapes.

use std::collections::BTreeMap;

use graph::{Graph, StateKind};
use hub::Directory;
use models::{Given, Model};
use train::pretrained;

use crate::gradients::{DECODERS, fixture};

fn of_graph(model: &dyn Model) -> BTreeMap<String, Vec<usize>> {
    let step = models::Step::new(1, 4);
    let graph: Graph = models::logits_step(model, step, &Given::default(), models::Precision::Uniform);
    graph
        .states()
        .filter(|(_, state)| state.kind == StateKind::Parameter)
        .map(|(value, state)| (state.name.clone(), graph.shape(value)))
        .collect()
}

fn of_table(directory: &Directory) -> BTreeMap<String, Vec<usize>> {
    directory.table().parameters().iter().map(|p| (p.name.clone(), p.piece.shape())).collect()
}

#[test]
fn decoders() {
    for name in DECODERS {
        let directory = Directory::open(&fixture(name), None).unwrap();
        let decoder = pretrained::decoder(directory.config(), 4).unwrap();
        assert_eq!(of_table(&directory), of_graph(&decoder), "{name}");
    }
}
