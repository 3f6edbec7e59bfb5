//! Breadth-first search over all reachable states of a model. A counterexample has the shortest path.
//!
//! It also checks liveness: from every state, a path to a good state must exist.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash},
};

/// A model to explore.
pub(crate) trait Model {
    type State: Clone + Hash;
    type Action: Copy + fmt::Debug;

    fn start(&self) -> Self::State;

    /// The actions that are possible in a state.
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;

    /// Applies an action. The error is a violated invariant.
    fn step(&self, state: &mut Self::State, action: Self::Action) -> Result<(), String>;

    /// Whether this is a good state.
    fn is_well(&self, state: &Self::State) -> bool;
}

/// Statistics of a search.
pub(crate) struct ExploredStats {
    states: usize,
    steps: usize,
    /// Number of good states.
    well: usize,
    /// Number of states that were reached but not explored.
    unvisited: usize,
}

/// A violated invariant and the path to it.
#[derive(Debug)]
pub(crate) struct Counterexample {
    pub(crate) violation: String,
    pub(crate) trace: Vec<String>,
}

/// Visits all states, or the `states_max` states nearest to the start.
pub(crate) fn explore<M: Model>(model: &M, states_max: usize) -> Result<ExploredStats, Counterexample> {
    let mut map =
        StateGraph { model, known: HashMap::default(), from: Vec::new(), steps: Vec::new(), well: Vec::new() };
    let mut ahead = VecDeque::new();
    let start = model.start();
    map.enter(&start, None);
    ahead.push_back((0, start));
    while map.well.len() < states_max
        && let Some((here, state)) = ahead.pop_front()
    {
        for action in model.actions(&state) {
            let mut next = state.clone();
            if let Err(what) = model.step(&mut next, action) {
                return Err(map.found(what, here, Some(action)));
            }
            if let Some(there) = map.enter(&next, Some((here, action))) {
                ahead.push_back((there, next));
            }
        }
    }
    map.check_reachability(ahead.iter().map(|(number, _)| *number))?;
    let well = map.well.iter().filter(|well| **well).count();
    Ok(ExploredStats { states: map.well.len(), steps: map.steps.len(), well, unvisited: ahead.len() })
}

/// The states visited, by number.
struct StateGraph<'a, M: Model> {
    model: &'a M,
    known: HashMap<u64, usize, BuildHasherDefault<DefaultHasher>>,
    /// For each state, the previous state and the action on the shortest path.
    from: Vec<Option<(usize, M::Action)>>,
    steps: Vec<(u32, u32)>,
    well: Vec<bool>,
}

impl<M: Model> StateGraph<'_, M> {
    /// Records a state and the step to it. Returns its number if it is new.
    fn enter(&mut self, state: &M::State, from: Option<(usize, M::Action)>) -> Option<usize> {
        let number = self.well.len();
        let mark = BuildHasherDefault::<DefaultHasher>::default().hash_one(state);
        let there = *self.known.entry(mark).or_insert(number);
        if let Some((here, _)) = from {
            self.steps.push((u32::try_from(here).unwrap(), u32::try_from(there).unwrap()));
        }
        (there == number).then(|| {
            self.from.push(from);
            self.well.push(self.model.is_well(state));
            number
        })
    }

    /// Checks that each state has a path to a good state or to an unexplored one.
    fn check_reachability(&self, unvisited: impl Iterator<Item = usize>) -> Result<(), Counterexample> {
        let mut back = vec![Vec::new(); self.well.len()];
        for (here, there) in &self.steps {
            back[*there as usize].push(*here);
        }
        let mut saved = self.well.clone();
        unvisited.for_each(|number| saved[number] = true);
        let mut ahead: Vec<usize> = (0..saved.len()).filter(|number| saved[*number]).collect();
        while let Some(number) = ahead.pop() {
            for before in &back[number] {
                if !std::mem::replace(&mut saved[*before as usize], true) {
                    ahead.push(*before as usize);
                }
            }
        }
        match saved.iter().position(|saved| !saved) {
            Some(lost) => Err(self.found("no path from here to a good state".to_owned(), lost, None)),
            None => Ok(()),
        }
    }

    fn found(&self, what: String, mut here: usize, last: Option<M::Action>) -> Counterexample {
        let mut way: Vec<_> = last.iter().map(|action| format!("{action:?}")).collect();
        while let Some((before, action)) = self.from[here] {
            way.push(format!("{action:?}"));
            here = before;
        }
        way.reverse();
        Counterexample { violation: what, trace: way }
    }
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.violation)?;
        self.trace.iter().try_for_each(|step| writeln!(f, "  {step}"))
    }
}

impl fmt::Display for ExploredStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, steps, well, unvisited } = self;
        write!(f, "{states} states, {steps} steps, {well} well, {unvisited} not explored")
    }
}
