//! Who waits for whom, for people.

use std::fmt::Write as _;

use super::{
    edge::{EdgeState, Fact, Phase},
    vertex::{Content, Execution},
    *,
};

impl Graph {
    /// One line per edge that is wanted and not finished, saying what it waits for. Empty when
    /// nothing is going on.
    pub fn stuck(&self) -> String {
        let mut report = String::new();
        for (number, edge) in self.edges.iter() {
            let want = edge.asks.want();
            if want <= edge.level || edge.is_over() {
                continue;
            }
            let (name, level) = (self.label(number), edge.level);
            let wait = self.wait_text(number, edge);
            let _ = writeln!(report, "{name} at {level:?}, wanted {want:?}: {wait}");
        }
        report
    }

    fn label(&self, edge: EdgeIx) -> String {
        let state = &self.edges[edge];
        let vertex = &self.vertices[state.vertex];
        match state.output {
            0 => format!("`{}` {}", vertex.name, vertex.digest.short()),
            output => format!("`{}` {} output {output}", vertex.name, vertex.digest.short()),
        }
    }

    fn wait_text(&self, number: EdgeIx, edge: &EdgeState) -> String {
        let vertex = &self.vertices[edge.vertex];
        match &edge.phase {
            Phase::Follows { leader } => format!("follows {}", self.label(*leader)),
            Phase::Loading { candidate, .. } => format!("loads {}", candidate.found.record),
            Phase::Executing => match vertex.execution {
                Execution::Running(task) => {
                    let mut text = format!("executes as task {}", task.0);
                    for nested in self.awaited(number) {
                        let _ = write!(text, ", builds {}", self.label(nested));
                    }
                    text
                }
                _ if self.held_back_by(edge.vertex).is_some() => {
                    "queued for execution, its jobs execute as much as they may".to_owned()
                }
                _ => format!(
                    "queued for execution, {} of {} in use",
                    self.execute_queue.used(),
                    self.max_parallelism
                ),
            },
            Phase::Done { .. } | Phase::Failed(_) => "over".to_owned(),
            Phase::Searching => {
                let mut parts = Vec::new();
                parts.extend(vertex.map_task.map(|task| format!("cache map as task {}", task.0)));
                for (input, content) in vertex.contents.iter().enumerate() {
                    if let Content::Asked(task) = content {
                        parts.push(format!("content of input {input} as task {}", task.0));
                    }
                }
                let asked = self.awaited(number);
                let shown =
                    asked.iter().take(5).map(|input| format!("needs {}", self.label(*input)));
                parts.extend(shown);
                if asked.len() > 5 {
                    parts.push(format!("and {} more", asked.len() - 5));
                }
                if parts.is_empty() {
                    let left = edge.total(Fact::Unready);
                    parts.push(format!("nothing, which is a defect ({left} inputs not ready)"));
                }
                parts.join(", ")
            }
        }
    }
}
