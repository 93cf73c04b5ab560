//! The fields of `/v1/models` that Codex reads: it needs the context length to shorten a conversation in time.

use serde_json::{Value, json};

/// The agent's instructions, which Codex requires from the list of models.
const INSTRUCTIONS: &str = "\
You are Codex, a coding agent that works on the user's machine by the tools that are declared to you.
- Work until the task is done. Look at the files that matter before you change them, and keep to their style.
- Read and search by the shell; `rg` is quick where it is there. Edit with `apply_patch`.
- Run the tests or the program to see that a change works.
- Follow the AGENTS.md files of the folders that you work in.
- Do not commit, and do not undo changes that are not yours, unless you are asked to.
- Say in a sentence what you are about to do, and at the end what you did and what is left. Be brief.";

/// A model as Codex describes models.
pub fn describe(name: &str, context: Option<usize>) -> Value {
    json!({
        "slug": name,
        "display_name": name,
        "description": null,
        "supported_reasoning_levels": [],
        "shell_type": "shell_command",
        "visibility": "list",
        "supported_in_api": true,
        "priority": 0,
        "upgrade": null,
        "base_instructions": INSTRUCTIONS,
        "supports_reasoning_summaries": false,
        "support_verbosity": false,
        "default_verbosity": null,
        "apply_patch_tool_type": null,
        "truncation_policy": { "mode": "bytes", "limit": 10_000 },
        "supports_parallel_tool_calls": true,
        "context_window": context,
        "experimental_supported_tools": [],
        "input_modalities": ["text"],
    })
}
