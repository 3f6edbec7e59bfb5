//! A site that can be replaced while its listener runs: what is answered before the store is open, and after.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use axum::Router;
use hyper_util::service::TowerToHyperService;

/// The site that requests are passed to. Clones share it.
#[derive(Clone)]
pub struct RouterSwitch(Arc<RwLock<TowerToHyperService<Router>>>);

impl RouterSwitch {
    pub fn new(site: Router) -> Self {
        Self(Arc::new(RwLock::new(TowerToHyperService::new(site))))
    }

    /// Requests that come from now on are answered by this site. Connections stay open.
    pub fn replace(&self, site: Router) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = TowerToHyperService::new(site);
    }

    /// The site that answers at this moment.
    pub(super) fn current(&self) -> TowerToHyperService<Router> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for RouterSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switch").finish_non_exhaustive()
    }
}
