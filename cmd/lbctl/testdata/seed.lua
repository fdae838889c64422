-- A configuration of the OpenResty balancer, with what its authors leave in it.
local config = {}

local function instance(name, host, token, weight)
    return {
        name = name,
        host = host,
        port = 80,
        token = token,
        weight = weight or 1,
        max_fails = 3,
        fail_timeout = 30
    }
end

config.applications = {
    customer_service = {
        description = "answers customers",
        user_tokens = {
            "usertoken--customer-service-v1"
        },
        instances = {
            instance("dify1", "172.20.62.200", "app-customer-token-0001"),
            instance("dify2", "172.20.62.201", "app-customer-token-0002", 3),
            instance("dify3", "172.20.62.202", "app-customer-token-0003"),
        }
    },
    ["content_generator"] = {
        tokens = { "user-token-generator-v1", "user-token-generator-v2" },
        instances = {
            { name = "cg" .. 1, host = "https://api.dify.ai/v1", api_key = "app-generator-token-01", backup = true },
            { name = "cg2", host = "192.168.1.20:5001", dify_token = "app-generator-token-02", fail_timeout = "10s" },
        },
        rate_limit = { per_app = { rate = "90r/m" } },
    },
}

config.consistent_hash = {
    virtual_nodes = 200,
    hash_algorithm = "sha1"
}

config.rate_limit = {
    per_user_per_app = { rate = "50r/s", burst = 100 },
    per_app = { rate = "500r/s", burst = 200 },
    per_ip = { rate = "200r/s", burst = 0 }
}

config.health_check = {
    enabled = true,
    interval = 30,
    timeout = 10,
    path = "/v1/parameters",
    healthy_threshold = 2,
    unhealthy_threshold = 3,
    retries = 5
}

config.logging = { level = ngx.INFO }
config.monitoring = { enabled = true }
config.colour = "blue"

return config
