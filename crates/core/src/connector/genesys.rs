//! What both dialects of Genesys Cloud share.

use super::{CloseCode, Verdict};

/// 4001 is sent when the token expires (docs/platforms/genesys-cloud.md, "Close codes").
pub(super) const CLOSE_CODES: [CloseCode; 1] = [CloseCode { code: 4001, verdict: Verdict::RefreshToken }];
