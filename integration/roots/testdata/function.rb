require 'net/http'
require 'socket'

def handler(event:, context:)
  name = Addrinfo.getaddrinfo('sandbox.localdomain', 80, nil, :STREAM)[0].ip_address
  "#{name} #{Net::HTTP.get(URI(event['url']))}"
end
