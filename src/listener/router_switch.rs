//! A router that can be replaced while its listener runs: before and after the store is open.

use std::{fmt, sync::Arc};

use axum::Router;
use hyper_util::service::TowerToHyperService;
use parking_lot::RwLock;

/// The current router. Clones share it.
#[derive(Clone)]
pub struct RouterSwitch(Arc<RwLock<TowerToHyperService<Router>>>);

impl RouterSwitch {
    pub fn new(site: Router) -> Self {
        Self(Arc::new(RwLock::new(TowerToHyperService::new(site))))
    }

    /// Uses this router for new requests. Connections stay open.
    pub fn replace(&self, site: Router) {
        *self.0.write() = TowerToHyperService::new(site);
    }

    /// The current router.
    pub(super) fn current(&self) -> TowerToHyperService<Router> {
        self.0.read().clone()
    }
}

impl fmt::Debug for RouterSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switch").finish_non_exhaustive()
    }
}
