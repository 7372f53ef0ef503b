//! A definition as text, for people.

use std::fmt::Write as _;

use crate::Definition;

/// One line a vertex: short digest, name, inputs.
pub fn text(definition: &Definition) -> String {
    let mut out = String::new();
    for vertex in definition.vertices() {
        let inputs: Vec<String> = vertex
            .inputs
            .iter()
            .map(|edge| format!("{}:{}", edge.vertex.short(), edge.index))
            .collect();
        let arrow =
            if inputs.is_empty() { String::new() } else { format!(" <- {}", inputs.join(" ")) };
        writeln!(out, "{} {}{arrow}", vertex.digest.short(), vertex.name)
            .expect("writing to a string");
    }
    let result = definition.result();
    writeln!(out, "result {}:{}", result.vertex.short(), result.index)
        .expect("writing to a string");
    out
}

/// The graph in Graphviz's language.
pub fn dot(definition: &Definition) -> String {
    let mut out = String::from("digraph {\n");
    for vertex in definition.vertices() {
        let id = vertex.digest.short();
        let label = vertex.name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        writeln!(out, "  \"{id}\" [label=\"{label}\"];").expect("writing to a string");
        for edge in &vertex.inputs {
            writeln!(out, "  \"{}\" -> \"{id}\" [label=\"{}\"];", edge.vertex.short(), edge.index)
                .expect("writing to a string");
        }
    }
    out.push_str("}\n");
    out
}
