// Activations, and gates: ACTIVATION names the function of the first factor, OTHER that of the second.

static inline float same(float x) { return x; }

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

static inline float silu(float x) { return x / (1.0f + exp(-x)); }

static inline float gelu_sigmoid(float x) { return x / (1.0f + exp(-1.702f * x)); }

// The tanh approximation of x · Φ(x).
static inline float gelu_tanh(float x) {
    const float inner = 0.7978845608f * fma(0.044715f * x * x, x, x);
    return 0.5f * x * (1.0f + tanh(inner));
}

// The error function, by the polynomials of the Cephes library (S. Moshier).
static inline float error_function(float x) {
    const float square = x * x;
    if (square < 1.0f) {
        float p = 7.8538614e-5f;
        p = fma(p, square, -8.0101936e-4f);
        p = fma(p, square, 5.1883277e-3f);
        p = fma(p, square, -2.6853812e-2f);
        p = fma(p, square, 1.1283585e-1f);
        p = fma(p, square, -3.7612626e-1f);
        return x * fma(p, square, 1.1283792f);
    }
    const float q = 1.0f / abs(x), y = q * q;
    float p;
    if (abs(x) < 2.0f) {
        p = 2.32682e-2f;
        p = fma(p, y, -1.3870394e-1f);
        p = fma(p, y, 3.6874247e-1f);
        p = fma(p, y, -5.824733e-1f);
        p = fma(p, y, 6.2100046e-1f);
        p = fma(p, y, -4.9445153e-1f);
        p = fma(p, y, 3.40488e-1f);
        p = fma(p, y, -2.741127e-1f);
        p = fma(p, y, 5.6382594e-1f);
    } else {
        p = -10.477664f;
        p = fma(p, y, 12.9772f);
        p = fma(p, y, -7.495519f);
        p = fma(p, y, 2.921019f);
        p = fma(p, y, -1.0152653f);
        p = fma(p, y, 4.2184634e-1f);
        p = fma(p, y, -2.8207674e-1f);
        p = fma(p, y, 5.641895e-1f);
    }
    const float large = 1.0f - exp(-square) * q * p;
    return x < 0.0f ? -large : large;
}

// x · Φ(x).
static inline float gelu(float x) { return 0.5f * x * (1.0f + error_function(x * 0.7071067812f)); }

static inline float relu(float x) { return max(x, 0.0f); }

static inline float relu_squared(float x) { return relu(x) * relu(x); }

static inline float tanh_of(float x) { return tanh(x); }

// ln(1 + eˣ) = max(x, 0) + ln(1 + e), with e = e^−|x|. The logarithm is 2 artanh(e / (2 + e)), of which the argument is at most ⅓, as
// its series.
static inline float softplus(float x) {
    const float e = exp(-abs(x)), z = e / (2.0f + e), square = z * z;
    float p = 2.0f / 15.0f;
    p = fma(p, square, 2.0f / 13.0f);
    p = fma(p, square, 2.0f / 11.0f);
    p = fma(p, square, 2.0f / 9.0f);
    p = fma(p, square, 2.0f / 7.0f);
    p = fma(p, square, 2.0f / 5.0f);
    p = fma(p, square, 2.0f / 3.0f);
    p = fma(p, square, 2.0f);
    return fma(p, z, max(x, 0.0f));
}

#ifdef XIELU_ABOVE
static inline float xielu(float x) {
    if (x > 0.0f) return XIELU_ABOVE * x * x + XIELU_SLOPE * x;
    return XIELU_BELOW * (exp(min(x, float(XIELU_EPS))) - 1.0f - x) + XIELU_SLOPE * x;
}
#endif

// The factors of the gate of gpt-oss.
static inline float clamped_swish(float x) {
    const float g = min(x, 7.0f);
    return g / (1.0f + exp(-1.702f * g));
}

static inline float clamped_plus_one(float x) { return clamp(x, -7.0f, 7.0f) + 1.0f; }
