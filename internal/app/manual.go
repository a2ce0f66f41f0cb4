package app

import "handrail.dev/handrail/internal/surface/cli"

// Manual is the configuration as its manual page says it: the flags of `up` and
// what `config explain` says, so that nothing is said twice.
func Manual() cli.Manual {
	flags := upCommand("").Flags()
	m := cli.Manual{}
	for _, name := range settingNames {
		m.Settings = append(m.Settings, cli.Setting{Name: name, About: flags.Lookup(name).Usage})
	}
	for _, c := range configCommand().Commands() {
		m.About = c.Long
	}
	return m
}
