//! What progress displays call a vertex. Source: LLB notes §1.5.

use crate::pb::{self, file_action::Action, op::Op};

/// Key of [`pb::OpMetadata::description`] that overrides the derived name.
pub const CUSTOM_NAME: &str = "llb.customname";

/// The name of a vertex; `input` gives the names of its inputs by position.
pub fn vertex_name<'a>(
    op: &pb::Op,
    metadata: &pb::OpMetadata,
    input: impl Fn(usize) -> &'a str,
) -> String {
    if let Some(custom) = metadata.description.get(CUSTOM_NAME) {
        return custom.clone();
    }
    let name_of = |index: i64| usize::try_from(index).map_or("", &input);
    match &op.op {
        Some(Op::Source(source)) => source.identifier.clone(),
        Some(Op::Exec(exec)) => {
            exec.meta.as_ref().map_or_else(String::new, |meta| meta.args.join(" "))
        }
        Some(Op::File(file)) => {
            file.actions.iter().filter_map(action_name).collect::<Vec<_>>().join(", ")
        }
        Some(Op::Build(_)) => "build".into(),
        Some(Op::Merge(merge)) => {
            let names: Vec<&str> = merge.inputs.iter().map(|side| name_of(side.input)).collect();
            format!("merge ({})", names.join(", "))
        }
        Some(Op::Diff(diff)) => {
            let side = |index: Option<i64>| match index {
                Some(index) if index >= 0 => format!("({})", name_of(index)),
                _ => "scratch".to_owned(),
            };
            let lower = side(diff.lower.as_ref().map(|lower| lower.input));
            let upper = side(diff.upper.as_ref().map(|upper| upper.input));
            format!("diff {lower} -> {upper}")
        }
        Some(Op::Passthrough(pass)) => format!("passthrough {}", pass.id),
        None => "unknown".into(),
    }
}

fn action_name(action: &pb::FileAction) -> Option<String> {
    Some(match action.action.as_ref()? {
        Action::Mkdir(mkdir) => format!("mkdir {}", mkdir.path),
        Action::Mkfile(mkfile) => format!("mkfile {}", mkfile.path),
        Action::Symlink(link) => format!("symlink {} -> {}", link.newpath, link.oldpath),
        Action::Rm(rm) => format!("rm {}", rm.path),
        Action::Copy(copy) => format!("copy {} {}", copy.src, copy.dest),
    })
}
