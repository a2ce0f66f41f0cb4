// Package servers holds the tests of several servers over one PostgreSQL: real
// processes, a real database, hosts of the lab and stock clients.
package servers
