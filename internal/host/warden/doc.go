// Package warden is the root half of a node. It has no network: it listens on
// a unix socket that only the link may open, believes nothing that the link
// says, and verifies every order itself before it starts a keeper.
//
//	server ══ TLS ══ link ── unix socket ──▶ warden ──▶ keeper ──▶ sandbox
//	                  ▲   order, lease, brake   │  re-exec  │
//	                  └───── session fd ◀───────┴───────────┘
//
// What must stay true:
//
//   - no proof, no action: an order is the exact bytes of a ledger entry under
//     a checkpoint that extends the last one seen here;
//   - power is given only on a fresh lease, taken away on a signature alone;
//   - whatever is refused that an honest server would not have sent is an
//     alarm, and an alarm goes up;
//   - a session never outlives its keeper, a keeper never outlives the warden,
//     and what a killed warden left is killed when the next one starts.
//
// A crash loses the ids of the orders carried out. They need no disk: an order
// issued before this warden's first lease is refused, and a lease answers this
// warden's own nonce. The last checkpoint is on disk before an order that
// advanced it is answered.
package warden
