using System.Diagnostics.CodeAnalysis;

namespace PoolingInvoker;

/// <summary>Copies options: all that can be set.</summary>
internal static class OptionsCopy
{
    public static T Of<[DynamicallyAccessedMembers(DynamicallyAccessedMemberTypes.PublicProperties)] T>(T given)
        where T : new()
    {
        var copy = new T();
        foreach (var property in typeof(T).GetProperties().Where(static property => property.CanWrite))
        {
            property.SetValue(copy, property.GetValue(given));
        }

        return copy;
    }
}
