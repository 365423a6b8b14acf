# An internal extension: it lives in the runtime's process and began before it.
require 'json'
require 'net/http'

host, port = ENV.fetch('AWS_LAMBDA_RUNTIME_API').split(':')
api = Net::HTTP.new(host, port.to_i)
api.read_timeout = nil
api.start
answer = api.post('/2020-01-01/extension/register', JSON.generate(events: ['INVOKE']), 'Lambda-Extension-Name' => ENV.fetch('HOOK_NAME', 'hook'))
id = answer['Lambda-Extension-Identifier']
Thread.new do
  loop do
    event = JSON.parse(api.get('/2020-01-01/extension/event/next', 'Lambda-Extension-Identifier' => id).body)
    $stdout.write("hook: #{event['eventType']}\n")
  end
end
trap('TERM') do
  $stdout.write("hook: SIGTERM\n")
  exit!(0)
end
