// Package directory keeps a read copy of the company's directory: its people,
// nested groups and managers, read from LDAP, dated and signed.
//
//	LDAP ── pushed (RFC 4533), or read in pages ──▶ world ──▶ Copy ──▶ plan ──▶ people
//
// What must stay true: what is read is whole or it is nothing. A referral, a
// limit, a broken connection, a group whose members cannot be seen, an entry
// without its id: each is a failure that changes nothing, never a smaller
// company. The library behind it reports a search that was given up, or whose
// connection went away, as one that ended well; so an end counts only with the
// control that says so.
//
// An entry is known by the id that it keeps for ever. Names are for people.
package directory
