package mask

import (
	"math"
	"strings"
	"sync"
)

// harmless are the names whose values say how a program runs, not what it
// holds. Everything else is masked: a name that nobody knows may hold anything.
var harmless = sync.OnceValue(func() map[string]bool {
	names := map[string]bool{}
	for _, n := range strings.Fields(`PATH HOME USER LOGNAME SHELL TERM COLORTERM LANG LANGUAGE TZ PWD OLDPWD SHLVL HOSTNAME HOST MAIL EDITOR PAGER _
		DISPLAY TMPDIR TMP TEMP UMASK COLUMNS LINES NO_COLOR FORCE_COLOR CI DEBIAN_FRONTEND
		INVOCATION_ID JOURNAL_STREAM NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID LISTEN_FDS LISTEN_PID LISTEN_FDNAMES MAINPID MANAGERPID SYSTEMD_EXEC_PID
		RUNTIME_DIRECTORY STATE_DIRECTORY CACHE_DIRECTORY LOGS_DIRECTORY CONFIGURATION_DIRECTORY MEMORY_PRESSURE_WATCH MEMORY_PRESSURE_WRITE
		GOGC GOMAXPROCS GOMEMLIMIT GODEBUG GOTRACEBACK GOROOT GOPATH GOOS GOARCH GOFLAGS GOTOOLCHAIN CGO_ENABLED
		JAVA_HOME JRE_HOME CATALINA_HOME CATALINA_BASE JAVA_VERSION CLASSPATH
		PYTHONPATH PYTHONHOME PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE PYTHONHASHSEED PYTHONFAULTHANDLER PYTHONIOENCODING PYTHON_VERSION VIRTUAL_ENV
		NODE_ENV NODE_VERSION NODE_PATH UV_THREADPOOL_SIZE NPM_CONFIG_LOGLEVEL YARN_VERSION
		RAILS_ENV RACK_ENV RUBY_VERSION GEM_HOME BUNDLE_PATH RUST_LOG RUST_BACKTRACE
		PORT LISTEN BIND ADDR LOG_LEVEL LOGLEVEL LOG_FORMAT DEBUG VERBOSE ENV ENVIRONMENT APP_ENV STAGE REGION AWS_REGION AWS_DEFAULT_REGION
		SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS PIP_CERT
		MALLOC_ARENA_MAX MALLOC_TRIM_THRESHOLD_ LD_PRELOAD LD_LIBRARY_PATH OMP_NUM_THREADS
		KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT KUBERNETES_PORT container POD_NAME POD_NAMESPACE NODE_NAME
		PGHOST PGPORT PGUSER PGDATABASE PGDATA PGSSLMODE NGINX_VERSION`) {
		names[n] = true
	}
	return names
})

// harmlessPrefixes are those of whole families.
var harmlessPrefixes = []string{"LC_", "XDG_", "OTEL_SERVICE_", "OTEL_EXPORTER_OTLP_PROTOCOL", "SYSTEMD_"}

// Variable returns what may be shown of a variable's value, and why it is not
// all of it; "" where it is.
func Variable(name, value string) (shown, why string) {
	switch {
	case value == "":
		return "", ""
	case SecretName(name):
		return Hidden(Password), Password
	case !known(name):
		return Hidden(Unknown), Unknown
	}
	shown, n := Text(value)
	if n > 0 {
		return shown, "a part of it"
	}
	if dense(value) {
		return Hidden(Key), Key
	}
	return shown, ""
}

func known(name string) bool {
	if harmless()[name] {
		return true
	}
	for _, p := range harmlessPrefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// dense says whether a value is one long word of as many bits as a key has:
// no path, no list, no number.
func dense(s string) bool {
	if len(s) < 32 || strings.ContainsAny(s, " /:,;.\\") {
		return false
	}
	var count [256]int
	for i := range len(s) {
		count[s[i]]++
	}
	bits := 0.0
	for _, n := range count {
		if n > 0 {
			p := float64(n) / float64(len(s))
			bits -= p * math.Log2(p)
		}
	}
	return bits > 3.6
}

// Args returns a command line, word by word, as it may be shown, and how much
// was taken out. It sees what a text cannot: which word belongs to which.
func Args(args []string) ([]string, int) {
	out := make([]string, len(args))
	count := 0
	program := ""
	if len(args) > 0 {
		program = args[0][strings.LastIndexByte(args[0], '/')+1:]
	}
	for i, a := range args {
		out[i] = a
		if i == 0 {
			continue
		}
		prev := args[i-1]
		flag, value, joined := strings.Cut(a, "=")
		switch {
		case joined && strings.HasPrefix(a, "-") && SecretName(flag) && value != "",
			joined && !strings.HasPrefix(a, "-") && len(flag) < 64 && !strings.ContainsAny(flag, " /:\"'{") && SecretName(flag) && value != "":
			out[i] = flag + "=" + Hidden(Password)
			count++
		case strings.HasPrefix(prev, "-") && !strings.Contains(prev, "=") && SecretName(prev) && a != "" && !(strings.HasPrefix(a, "-") && len(a) < 24 && !dense(a)):
			out[i] = Hidden(Password)
			count++
		case shortSecret(program, prev, a):
			out[i] = Hidden(Login)
			count++
		case shortJoined(program, a):
			out[i] = a[:2] + Hidden(Password)
			count++
		default:
			var n int
			out[i], n = Text(a)
			count += n
		}
	}
	if len(out) > 0 { // the program's own name can be set by itself
		var n int
		out[0], n = Text(out[0])
		count += n
	}
	return out, count
}

// shortSecret knows programs whose one-letter flags take a secret.
func shortSecret(program, flag, value string) bool {
	switch program {
	case "curl", "http", "https", "wget":
		return (flag == "-u" || flag == "--user" || flag == "--proxy-user" || flag == "-U") && strings.Contains(value, ":")
	case "ldapsearch", "ldapmodify", "ldapadd", "ldappasswd", "ldapdelete":
		return flag == "-w"
	case "sshpass", "smbclient", "redis-cli", "mosquitto_sub", "mosquitto_pub":
		return flag == "-p" && program == "sshpass" || flag == "-a" && program == "redis-cli" || flag == "-P" && strings.HasPrefix(program, "mosquitto") || flag == "-U" && program == "smbclient"
	}
	return false
}

// shortJoined knows those that have it in the same word.
func shortJoined(program, word string) bool {
	if len(word) < 3 || strings.HasPrefix(word, "--") {
		return false
	}
	switch program {
	case "mysql", "mysqldump", "mysqladmin", "mariadb", "mariadb-dump", "sshpass":
		return strings.HasPrefix(word, "-p")
	case "7z", "7za", "unrar", "rar":
		return strings.HasPrefix(word, "-p")
	}
	return false
}
