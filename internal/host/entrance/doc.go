// Package entrance is where a person with a voucher comes in while no server
// answers. It ends the SSH itself, in a process of the warden's own making that
// has no power: its own uid, an empty root folder, no network but the one
// connection that it was given.
//
//	ssh ══ TCP ══ link ── socket pair ══▶ entrance child ◀── control ──▶ warden
//	         (carries ciphertext)          ends SSH │  offer, sign, start   │ judges
//	                                                └──── session fd ◀──────┴ keeper
//
// What must stay true:
//
//   - the warden judges every voucher itself; the child's one word that counts
//     is that the connection's other end holds the voucher's key, which only
//     the process that ended the key exchange can know;
//   - the link carries ciphertext, after the one line in the clear with which SSH
//     begins: it can cut, delay and count, not read;
//   - the host key never leaves the warden: the child has each hash signed;
//   - before a session runs, the child is given nothing worth taking.
package entrance
