package runtimes

import (
	"context"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

//go:embed ruby/lambdad_runtime.rb
var rubyClient embed.FS

// firstRuby is the oldest Ruby that the client runs on.
const firstRuby = "3.0"

// ruby is CRuby: the host's own or a version manager's.
func ruby() *language {
	return &language{
		name: "ruby", title: "Ruby",
		releases: []string{"3.2", "3.3", "3.4"},
		id:       func(release string) string { return "ruby" + release },
		client:   rubyClient,
		exact:    exactRubies,
		likely:   func() []string { return append(inPath("ruby"), usual("ruby")...) },
		ask:      askRuby,
		fits:     func(i interpreter, _ string) bool { return newer(i.Release, firstRuby) },
		programs: func(i interpreter) []string { return []string{filepath.Base(i.Path), "ruby"} },
		env: func(release string) map[string]string {
			return map[string]string{
				"GEM_HOME": "/var/runtime",
				"GEM_PATH": "/var/task/vendor/bundle/ruby/" + release + ".0:/opt/ruby/gems/" + release + ".0:/var/runtime:/var/runtime/ruby/" + release + ".0",
				"RUBYLIB":  "/var/task:/var/runtime/lib:/opt/ruby/lib",
			}
		},
		warning: "gems with compiled parts must fit it",
		install: "Install Ruby " + firstRuby + " or later there and try again.",
	}
}

// exactRubies lists where a release may be, best first.
func exactRubies(release string) []string {
	list := append(inPath("ruby"+release), usual("ruby"+release)...)
	list = append(list, below(os.Getenv("RBENV_ROOT"), "versions/"+release+".*/bin/ruby")...)
	if home := home(); home != "" {
		for _, dir := range []string{".rbenv/versions/", ".asdf/installs/ruby/", ".local/share/mise/installs/ruby/", ".rubies/ruby-", ".rvm/rubies/ruby-"} {
			list = append(list, below(home, dir+release+".*/bin/ruby")...)
		}
	}
	for _, pattern := range []string{"/opt/rbenv/versions/" + release + ".*", "/opt/rubies/ruby-" + release + ".*", "/opt/hostedtoolcache/Ruby/" + release + ".*/*",
		"/opt/homebrew/opt/ruby@" + release, "/usr/local/opt/ruby@" + release} {
		list = append(list, below("/", pattern+"/bin/ruby")...)
	}
	return list
}

const rubyProbe = `require "rbconfig"
c = RbConfig::CONFIG
puts [RUBY_ENGINE, RUBY_VERSION, File.realpath(c["prefix"]), File.realpath(RbConfig.ruby)]`

func askRuby(ctx context.Context, path string) (interpreter, error) {
	lines, err := askProgram(ctx, 4, path, "--disable-gems", "-e", rubyProbe)
	if err != nil {
		return interpreter{}, err
	}
	engine, version, prefix, program := lines[0], lines[1], lines[2], lines[3]
	if engine != "ruby" {
		return interpreter{}, fmt.Errorf("is %s, and AWS's runtimes are CRuby", engine)
	}
	v := numbers(version)
	if len(v) < 2 || !strings.HasPrefix(program, prefix+"/bin/") {
		return interpreter{}, fmt.Errorf("its program %s is not in bin below its prefix %s", program, prefix)
	}
	return interpreter{Release: fmt.Sprintf("%d.%d", v[0], v[1]), Version: version, Prefix: prefix, Path: program}, nil
}
