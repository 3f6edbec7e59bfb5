//! Visits every state that a model can reach, each once, breadth first.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher},
};

/// A model with states and actions.
pub(super) trait Model {
    type State: Clone + Hash;
    type Action: Copy + Debug;

    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;

    /// The state after the action, or the violated invariant.
    fn apply(&self, state: &Self::State, action: Self::Action) -> Result<Self::State, String>;
}

/// Returns the number of states, or the shortest path to a violation.
pub(super) fn explore<M: Model>(model: &M, start: M::State) -> Result<usize, String> {
    let root = digest(&start);
    let mut origins = HashMap::from([(root, None)]);
    let mut frontier = VecDeque::from([start]);
    while let Some(state) = frontier.pop_front() {
        let from = digest(&state);
        for action in model.actions(&state) {
            let next = model.apply(&state, action);
            let next = next.map_err(|flaw| format!("{flaw}, after {}", trace(&origins, from, action)))?;
            origins.entry(digest(&next)).or_insert_with(|| {
                frontier.push_back(next);
                Some((from, action))
            });
        }
    }
    Ok(origins.len())
}

fn digest(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

fn trace<A: Copy + Debug>(origins: &HashMap<u64, Option<(u64, A)>>, mut at: u64, last: A) -> String {
    let mut steps = vec![format!("{last:?}")];
    while let Some(Some((from, action))) = origins.get(&at) {
        steps.push(format!("{action:?}"));
        at = *from;
    }
    steps.reverse();
    steps.join(", ")
}
